"""Hypercalls that are only for domain 0 or device models: the refusals, in Xen's order of checks.

Source: the beginnings of do_domctl, do_sysctl, do_platform_op, do_dm_op, do_xenoprof_op and
do_paging_domctl_cont of Xen. A guest learns the interface's version before it learns that it may
not use it: EACCES first, then EPERM.
"""

from __future__ import annotations

from struct import Struct

from pyxen.abi.domctl import (
    XEN_DOMCTL_INTERFACE_VERSION,
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_shadow_op,
)
from pyxen.abi.errno import E
from pyxen.abi.platform import XENPF_INTERFACE_VERSION
from pyxen.abi.sysctl import XEN_SYSCTL_INTERFACE_VERSION
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.domid import check_exists
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U32

_HEADER = Struct("<IIH")
"""command, interface_version, and in domctl the domain."""
_DOMCTL_BYTES = 144
_SYSCTL_BYTES = 136
_PLATFORM_OP_BYTES = 136
_MAX_DM_OP_BUFFERS = 2
_DM_OP_BUFFER_BYTES = 16

_XENOPROF_INIT_BYTES = 72
_XENOPROF_init, _XENOPROF_get_buffer, _XENOPROF_LAST = 0, 14, 17


def domctl(d: Domain, v: Vcpu, argument: int) -> int:
    """HYPERVISOR_domctl: EFAULT, EACCES, ESRCH or EPERM."""
    command, version, domid = _header(d, argument, _DOMCTL_BYTES)
    if version != XEN_DOMCTL_INTERFACE_VERSION:
        raise XenError(E.ACCES, f"domctl version {version:#x}")
    _exists(d, command, domid)
    raise XenError(E.PERM, f"domctl {command}: only for domain 0")


def paging_domctl_cont(d: Domain, v: Vcpu, argument: int) -> int:
    """What Xen goes on with after a piece of XEN_DOMCTL_shadow_op."""
    command, version, domid = _header(d, argument, _DOMCTL_BYTES)
    if version != XEN_DOMCTL_INTERFACE_VERSION or command != XEN_DOMCTL_shadow_op:
        raise XenError(E.OPNOTSUPP, f"domctl {command} has no second piece")
    _exists(d, command, domid)
    raise XenError(E.PERM, "only for domain 0")


def _exists(d: Domain, command: int, domid: int) -> None:
    if command not in (XEN_DOMCTL_createdomain, XEN_DOMCTL_getdomaininfo):
        check_exists(d, domid)


def sysctl(d: Domain, v: Vcpu, argument: int) -> int:
    """HYPERVISOR_sysctl: EFAULT, EACCES or EPERM."""
    command, version, _ = _header(d, argument, _SYSCTL_BYTES)
    if version != XEN_SYSCTL_INTERFACE_VERSION:
        raise XenError(E.ACCES, f"sysctl version {version:#x}")
    raise XenError(E.PERM, f"sysctl {command}: only for domain 0")


def platform_op(d: Domain, v: Vcpu, argument: int) -> int:
    """HYPERVISOR_platform_op: EFAULT, EACCES or EPERM."""
    command, version, _ = _header(d, argument, _PLATFORM_OP_BYTES)
    if version != XENPF_INTERFACE_VERSION:
        raise XenError(E.ACCES, f"platform_op version {version:#x}")
    raise XenError(E.PERM, f"platform_op {command}: only for domain 0")


def dm_op(d: Domain, v: Vcpu, domid: int, count: int, buffers: int) -> int:
    """HYPERVISOR_dm_op: nothing that a domain could do to itself, or to a PV domain."""
    if count & U32 > _MAX_DM_OP_BUFFERS:
        raise XenError(E.TOO_BIG, f"{count & U32} buffers")
    if count & U32:
        d.space.read(buffers, _DM_OP_BUFFER_BYTES * (count & U32))
    check_exists(d, domid & 0xFFFF)
    if domid & 0xFFFF == d.domid:
        raise XenError(E.PERM, "a device model of itself")
    raise XenError(E.INVAL, "only for HVM and PVH domains")


def xenoprof_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """HYPERVISOR_xenoprof_op, as on a processor that Xen cannot profile."""
    command &= U32
    if command > _XENOPROF_LAST:
        raise XenError(E.INVAL, f"xenoprof_op {command}")
    if command == _XENOPROF_init:
        d.space.read(argument, _XENOPROF_INIT_BYTES)
        raise XenError(E.NODEV, "the processor cannot be profiled")
    if command == _XENOPROF_get_buffer:
        raise XenError(E.BUSY, "the performance counters are in use")
    # Also for the two that a DomU may call: it has no buffer.
    raise XenError(E.PERM, f"xenoprof_op {command}")


def _header(d: Domain, argument: int, size_bytes: int) -> tuple[int, int, int]:
    command, version, domid = _HEADER.unpack_from(d.space.read(argument, size_bytes))
    return command, version, domid
