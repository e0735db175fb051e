"""GNTTABOP_copy and GNTTABOP_transfer: the hypervisor moves bytes or pages for a domain.

Source: public/grant_table.h. Both sides of a copy, and both ends of a transfer, can only be the
domain itself; domain 0 exists and grants and accepts nothing.
"""

from __future__ import annotations

from pyxen.abi.grant_table import (
    GNTCOPY_dest_gref,
    GNTCOPY_source_gref,
    GNTST_bad_copy_arg,
    GNTST_bad_domain,
    GNTST_bad_page,
    GNTST_general_error,
    GNTST_permission_denied,
    GnttabCopy,
    GnttabCopyPtr,
    GnttabTransfer,
)
from pyxen.abi.xen import DOMID_SELF
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.grant import (
    DOMAIN_0,
    GrantRefused,
    refuse_of_domain_0,
)
from pyxen.hypervisor.grant_active import READ, WRITE, Extent, Use
from pyxen.types import PAGE_SHIFT, PAGE_SIZE, U32, Mfn


def copy(d: Domain, op: GnttabCopy) -> None:
    """Copy up to a page. Raises: GrantRefused, with nothing copied and no grant in use."""
    from_gref = bool(op.flags & GNTCOPY_source_gref)
    to_gref = bool(op.flags & GNTCOPY_dest_gref)
    _check_domain(d, op.source.domid, from_gref)
    _check_domain(d, op.dest.domid, to_gref)
    source = _claim(d, op.source, from_gref, write=False)
    try:
        dest = _claim(d, op.dest, to_gref, write=True)
        try:
            _copy_bytes(d, op, source, dest)
        finally:
            _release(d, op.dest, to_gref, WRITE)
    finally:
        _release(d, op.source, from_gref, READ)


def _check_domain(d: Domain, domid: int, is_gref: bool) -> None:
    """Frames can be named of the domain itself only, and only as DOMID_SELF."""
    if domid != DOMID_SELF and not is_gref:
        raise GrantRefused(GNTST_permission_denied, f"a frame of domain {domid}")
    if domid not in (DOMID_SELF, d.domid, DOMAIN_0):
        raise GrantRefused(GNTST_bad_domain, f"there is no domain {domid}")


def _claim(d: Domain, end: GnttabCopyPtr, is_gref: bool, *, write: bool) -> Extent:
    """What may be copied at this end."""
    if is_gref:
        if end.domid == DOMAIN_0:
            refuse_of_domain_0(end.u & U32)
        return d.grants.acquire_to_copy(end.u & U32, d.domid, write=write)
    mfn = Mfn(end.u)
    if not d.frames.is_domains(mfn):
        raise GrantRefused(GNTST_bad_page, f"frame {mfn:#x} is not the domain's")
    if write:
        try:
            d.types.check_writable(mfn)
        except XenError as refused:
            raise GrantRefused(GNTST_general_error, str(refused)) from None
    return Extent(mfn, 0, PAGE_SIZE)


def _release(d: Domain, end: GnttabCopyPtr, is_gref: bool, use: Use) -> None:
    if is_gref:
        d.grants.release(end.u & U32, use)


def _copy_bytes(d: Domain, op: GnttabCopy, source: Extent, dest: Extent) -> None:
    if max(op.source.offset, op.dest.offset) + op.len > PAGE_SIZE:
        raise GrantRefused(GNTST_bad_copy_arg, "a copy beyond the end of a page")
    for end, extent in ((op.source, source), (op.dest, dest)):
        if end.offset < extent.start or end.offset + op.len > extent.start + extent.length:
            raise GrantRefused(GNTST_general_error, "a copy outside of what is granted")
    # COMMIT
    data = d.memory.read((source.mfn << PAGE_SHIFT) + op.source.offset, op.len)
    d.memory.write((dest.mfn << PAGE_SHIFT) + op.dest.offset, data)


def transfer(d: Domain, op: GnttabTransfer) -> None:
    """Give a page away. As in Xen, a page that nobody accepts is lost to the domain all the same.

    Raises: GrantRefused. Only with GNTST_bad_page the domain still has the page.
    """
    mfn = op.mfn
    try:
        d.types.check_unreferenced(mfn)
    except XenError as refused:
        raise GrantRefused(GNTST_bad_page, str(refused)) from None
    if op.domid == d.domid and d.grants.accepts_transfer(op.ref, d.domid):
        # COMMIT
        entries = d.grants.entries
        entries.commit_transfer(op.ref)
        d.reservation.set_m2p(mfn, entries.read(op.ref).frame)
        entries.complete_transfer(op.ref, mfn)
        d.flush_tlb()
        return
    d.reservation.release(mfn)
    d.flush_tlb()
    if op.domid not in (d.domid, DOMAIN_0):
        raise GrantRefused(GNTST_bad_domain, f"there is no domain {op.domid}")
    raise GrantRefused(GNTST_general_error, f"domain {op.domid} does not accept the page")
