"""HYPERVISOR_grant_table_op: what a guest needs to grant its pages to the host's back ends.

Source: public/grant_table.h, version 1. The host maps grants through hypervisor/grant.py.
"""

from __future__ import annotations

from struct import Struct

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GnttabGetVersion,
    GNTTABOP_get_version,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
)
from pyxen.abi.xen import DOMID_SELF
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.layout import MAX_GRANT_FRAMES
from pyxen.memory.pagetable import is_guest_vaddr


def grant_table_op(d: Domain, v: Vcpu, command: int, argument: int, count: int) -> int:
    """Dispatch on the command. Raises: XenError(ENOSYS) for those that are not implemented."""
    if command == GNTTABOP_setup_table:
        return _setup_table(d, argument, count)
    if command == GNTTABOP_query_size:
        return _query_size(d, argument, count)
    if command == GNTTABOP_get_version:
        return _get_version(d, argument, count)
    if command == GNTTABOP_set_version:
        return _set_version(d, argument, count)
    raise XenError(E.NOSYS, f"grant_table_op {command}")


def _single(count: int) -> None:
    if count != 1:
        raise XenError(E.INVAL, "one operation at a time")


def _setup_table(d: Domain, argument: int, count: int) -> int:
    _single(count)
    op = GnttabSetupTable.unpack(d.space.read(argument, GnttabSetupTable.SIZE))
    d.space.check_writable(argument, GnttabSetupTable.SIZE)
    if not is_guest_vaddr(op.frame_list, 8 * op.nr_frames):
        raise XenError(E.FAULT, f"frame list at {op.frame_list:#x}")
    if op.dom not in (DOMID_SELF, d.domid):
        op.status = GNTST_bad_domain
    elif op.nr_frames > MAX_GRANT_FRAMES:
        op.status = GNTST_general_error
    else:
        d.grants.grow(op.nr_frames)
        frames = [d.grants.frame(n) for n in range(op.nr_frames)]
        listed = d.space.try_write(op.frame_list, Struct(f"<{len(frames)}Q").pack(*frames))
        op.status = GNTST_okay if listed else GNTST_bad_virt_addr
    d.space.write(argument, op.pack())
    return 0


def _query_size(d: Domain, argument: int, count: int) -> int:
    _single(count)
    op = GnttabQuerySize.unpack(d.space.read(argument, GnttabQuerySize.SIZE))
    if op.dom in (DOMID_SELF, d.domid):
        op.nr_frames, op.max_nr_frames = d.grants.nr_frames, MAX_GRANT_FRAMES
        op.status = GNTST_okay
    else:
        op.status = GNTST_bad_domain
    d.space.write(argument, op.pack())
    return 0


def _get_version(d: Domain, argument: int, count: int) -> int:
    _single(count)
    op = GnttabGetVersion.unpack(d.space.read(argument, GnttabGetVersion.SIZE))
    if op.dom not in (DOMID_SELF, d.domid):
        raise XenError(E.PERM, "another domain's grant table")
    op.version = 1
    d.space.write(argument, op.pack())
    return 0


def _set_version(d: Domain, argument: int, count: int) -> int:
    _single(count)
    op = GnttabSetVersion.unpack(d.space.read(argument, GnttabSetVersion.SIZE))
    if op.version not in (1, 2):
        raise XenError(E.INVAL, f"grant table version {op.version}")
    if op.version == 2:
        raise XenError(E.NOSYS, "grant table version 2")
    op.version = 1
    d.space.write(argument, op.pack())
    return 0
