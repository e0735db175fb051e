"""Domain numbers in hypercall arguments: a guest sees itself and domain 0, and no other domain.

Source: rcu_lock_domain_by_any_id and xsm_default_action of Xen as their answers show to a guest.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.xen import DOMID_SELF
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.types import DomId

DOMAIN_0 = DomId(0)


def own_domid(d: Domain, domid: int) -> DomId:
    """A domain number, with DOMID_SELF replaced by the caller's."""
    return d.domid if domid == DOMID_SELF else DomId(domid)


def peer_domid(d: Domain, domid: int) -> DomId:
    """The number of a domain that exists. Raises: XenError(ESRCH)."""
    wanted = own_domid(d, domid)
    if wanted not in (d.domid, DOMAIN_0):
        raise XenError(E.SRCH, f"there is no domain {domid}")
    return wanted


def check_exists(d: Domain, domid: int) -> None:
    """As `peer_domid`, where Xen does not know DOMID_SELF. Raises: XenError(ESRCH)."""
    if domid not in (d.domid, DOMAIN_0):
        raise XenError(E.SRCH, f"there is no domain {domid}")


def check_own(d: Domain, domid: int) -> None:
    """Raise XenError(EPERM) for what a domain may only do to itself."""
    if own_domid(d, domid) != d.domid:
        raise XenError(E.PERM, f"domain {domid} is another one")
