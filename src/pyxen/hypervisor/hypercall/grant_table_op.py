"""HYPERVISOR_grant_table_op: the table itself, and lists of operations on grants.

Source: public/grant_table.h. An error number means that the call was refused or a list could not
be read or written at some place; what became of each operation is in its `status`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from struct import Struct
from typing import Any

from pyxen.abi._struct import XenStruct
from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTTAB_CACHE_CLEAN,
    GNTTAB_CACHE_INVAL,
    GNTST_bad_domain,
    GNTST_bad_virt_addr,
    GNTST_general_error,
    GNTST_okay,
    GNTST_permission_denied,
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GNTTABOP_cache_flush,
    GNTTABOP_copy,
    GNTTABOP_get_status_frames,
    GNTTABOP_get_version,
    GNTTABOP_map_grant_ref,
    GNTTABOP_query_size,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from pyxen.abi.xen import DOMID_SELF
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.grant import DOMAIN_0, GrantRefused
from pyxen.hypervisor.hypercall.continuation import Continue, exhausted, work
from pyxen.hypervisor.hypercall.grant_table_op_copy import copy, transfer
from pyxen.hypervisor.hypercall.grant_table_op_map import (
    map_grant_ref,
    unmap_and_replace,
    unmap_grant_ref,
)
from pyxen.hypervisor.page_types import Restart
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import PAGE_SHIFT, PAGE_SIZE, U32, U64, Mfn

_COMMAND_MASK = 0xFFF
"""Above it a continued cache_flush keeps where it was; all others refuse anything there."""
_NEGATIVE = 1 << 31
_FRAMES_PER_UNIT = 8
_STATUS = Struct("<h")
_VERSION = Struct("<I")


def grant_table_op(d: Domain, v: Vcpu, command: int, argument: int, count: int) -> int:
    """Dispatch on the command. Raises: XenError(ENOSYS) for those that Xen does not know."""
    opaque, command = command & U32 & ~_COMMAND_MASK, command & _COMMAND_MASK
    count &= U32
    if count & _NEGATIVE or (opaque and command != GNTTABOP_cache_flush):
        raise XenError(E.INVAL, f"{count} operations, {opaque:#x} with the command")
    operations = _LISTS.get(command)
    if operations is not None:
        return _run(d, operations, _List(command, argument, count))
    if command == GNTTABOP_cache_flush:
        return _cache_flush(d, _List(command, argument, count), opaque)
    handler = _SINGLE.get(command)
    if handler is None:
        raise XenError(E.NOSYS, f"grant_table_op {command}")
    if count != 1 and command in _COUNTED:
        raise XenError(E.INVAL, "one operation at a time")
    return handler(d, argument)


# --- lists ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _List:
    """A list of operations in guest memory."""

    command: int
    vaddr: int
    count: int

    def after(self, done: int, size: int) -> Continue:
        """What is left of the list."""
        return Continue(self.command, self.vaddr + done * size & U64, self.count - done)


@dataclass(frozen=True, slots=True)
class _Operations:
    """What the operations of a list are. `work`: units an operation; `flushes`: it unmaps pages."""

    structure: type[XenStruct]
    act: Callable[[Domain, Any], None]
    work: int
    whole: bool = False
    flushes: bool = False


def _swap(d: Domain, op: GnttabSwapGrantRef) -> None:
    d.grants.swap(op.ref_a, op.ref_b)


_LISTS = {
    GNTTABOP_map_grant_ref: _Operations(GnttabMapGrantRef, map_grant_ref, 6, whole=True),
    GNTTABOP_unmap_grant_ref: _Operations(GnttabUnmapGrantRef, unmap_grant_ref, 5, flushes=True),
    GNTTABOP_unmap_and_replace: _Operations(
        GnttabUnmapAndReplace, unmap_and_replace, 6, flushes=True
    ),
    GNTTABOP_transfer: _Operations(GnttabTransfer, transfer, 6),
    GNTTABOP_copy: _Operations(GnttabCopy, copy, 8),
    GNTTABOP_swap_grant_ref: _Operations(GnttabSwapGrantRef, _swap, 4),
}


def _run(d: Domain, operations: _Operations, todo: _List) -> int:
    """Do each operation and write its status. Raises: Continue; XenError(EFAULT)."""
    _check_handle(todo.vaddr)
    try:
        for n in range(todo.count):
            if n and exhausted(d):
                raise todo.after(n, operations.structure.SIZE)
            work(d, operations.work)
            try:
                d.types.finish_dying()  # so that nothing has to be tried again half-way
                _one(d, operations, todo.vaddr + n * operations.structure.SIZE & U64)
            except Restart:
                raise todo.after(n, operations.structure.SIZE) from None
    finally:
        if operations.flushes:
            d.flush_tlb()
    return 0


def _one(d: Domain, operations: _Operations, at: int) -> None:
    structure = operations.structure
    op: Any = structure.unpack(d.space.read(at, structure.SIZE))
    try:
        operations.act(d, op)
        op.status = GNTST_okay
    except GrantRefused as refused:
        op.status = refused.status
    # As in Xen, what was done stays done when its status cannot be written.
    if operations.whole:
        d.space.write(at, op.pack())
    else:
        _write_status(d, at, op)


def _check_handle(vaddr: int) -> None:
    """guest_handle_okay: of a list only the beginning is looked at before it is used."""
    if not is_guest_vaddr(vaddr):
        raise XenError(E.FAULT, f"a list at {vaddr:#x}")


def _write_status(d: Domain, at: int, op: Any) -> None:
    d.space.write(at + type(op).OFFSET["status"] & U64, _STATUS.pack(op.status))


def _cache_flush(d: Domain, todo: _List, opaque: int) -> int:
    """GNTTABOP_cache_flush: nothing to do but the checks; memory here is coherent with devices."""
    _check_handle(todo.vaddr)
    for n in range(todo.count):
        if n and exhausted(d):
            raise todo.after(n, GnttabCacheFlush.SIZE)
        work(d, 2)
        at = todo.vaddr + n * GnttabCacheFlush.SIZE & U64
        _check_flush(d, GnttabCacheFlush.unpack(d.space.read(at, GnttabCacheFlush.SIZE)), opaque)
        opaque = 0
    return 0


def _check_flush(d: Domain, op: GnttabCacheFlush, opaque: int) -> None:
    """Raises: XenError; in this command an operation has no status."""
    clean_and_invalidate = GNTTAB_CACHE_CLEAN | GNTTAB_CACHE_INVAL
    beyond = op.offset >= PAGE_SIZE or op.offset + op.length > PAGE_SIZE
    if beyond or op.op & ~clean_and_invalidate:
        raise XenError(E.INVAL, f"{op.length} bytes at {op.offset}, operation {op.op:#x}")
    if not op.length or not op.op:
        if opaque:
            raise XenError(E.ILSEQ, "no continuation of this is possible")
        return
    frame = int.from_bytes(op.a, "little") >> PAGE_SHIFT
    if frame >= d.memory.total_pages:
        raise XenError(E.INVAL, f"there is no frame {frame:#x}")
    if not d.frames.is_domains(frame):
        raise XenError(E.PERM, f"frame {frame:#x} is not the domain's")
    if op.op == GNTTAB_CACHE_INVAL:
        raise XenError(E.OPNOTSUPP, "x86 cannot drop cache lines without writing them")


# --- the table --------------------------------------------------------------------------------


def _setup_table(d: Domain, argument: int) -> int:
    op = GnttabSetupTable.unpack(d.space.read(argument, GnttabSetupTable.SIZE))
    _check_handle(op.frame_list)
    op.status = _whose(d, op.dom)
    if op.status == GNTST_okay:
        if op.nr_frames > d.grants.max_frames:
            op.status = GNTST_general_error
        else:
            d.grants.grow(op.nr_frames)
            frames = [d.grants.frame(n) for n in range(op.nr_frames)]
            op.status = _write_frames(d, op.frame_list, frames)
    _write_status(d, argument, op)
    return 0


def _get_status_frames(d: Domain, argument: int) -> int:
    op = GnttabGetStatusFrames.unpack(d.space.read(argument, GnttabGetStatusFrames.SIZE))
    _check_handle(op.frame_list)
    op.status = _whose(d, op.dom)
    if op.status == GNTST_okay:
        entries = d.grants.entries
        if op.nr_frames > entries.nr_status_frames:
            op.status = GNTST_general_error
        else:
            frames = [entries.status_frame(n) for n in range(op.nr_frames)]
            op.status = _write_frames(d, op.frame_list, frames)
    _write_status(d, argument, op)
    return 0


def _write_frames(d: Domain, vaddr: int, frames: list[Mfn]) -> int:
    work(d, len(frames) // _FRAMES_PER_UNIT)
    listed = d.space.try_write(vaddr, Struct(f"<{len(frames)}Q").pack(*frames))
    return GNTST_okay if listed else GNTST_bad_virt_addr


def _query_size(d: Domain, argument: int) -> int:
    op = GnttabQuerySize.unpack(d.space.read(argument, GnttabQuerySize.SIZE))
    op.status = _whose(d, op.dom)
    if op.status == GNTST_okay:
        op.nr_frames, op.max_nr_frames = d.grants.nr_frames, d.grants.max_frames
    d.space.write(argument, op.pack())
    return 0


def _get_version(d: Domain, argument: int) -> int:
    op = GnttabGetVersion.unpack(d.space.read(argument, GnttabGetVersion.SIZE))
    whose = _whose(d, op.dom)
    if whose != GNTST_okay:
        raise XenError(E.SRCH if whose == GNTST_bad_domain else E.PERM, f"domain {op.dom}")
    at = argument + GnttabGetVersion.OFFSET["version"]
    d.space.write(at, _VERSION.pack(d.grants.version))
    return 0


def _set_version(d: Domain, argument: int) -> int:
    """The version in use is written back, whatever became of the request."""
    op = GnttabSetVersion.unpack(d.space.read(argument, GnttabSetVersion.SIZE))
    work(d, d.grants.nr_frames)
    try:
        d.grants.set_version(op.version)
    finally:
        d.space.write(argument, _VERSION.pack(d.grants.version))
    return 0


def _whose(d: Domain, domid: int) -> int:
    """GNTST_okay for the domain itself: another one's table is not its business."""
    if domid in (DOMID_SELF, d.domid):
        return GNTST_okay
    return GNTST_permission_denied if domid == DOMAIN_0 else GNTST_bad_domain


_SINGLE: dict[int, Callable[[Domain, int], int]] = {
    GNTTABOP_setup_table: _setup_table,
    GNTTABOP_query_size: _query_size,
    GNTTABOP_set_version: _set_version,
    GNTTABOP_get_status_frames: _get_status_frames,
    GNTTABOP_get_version: _get_version,
}
_COUNTED = (GNTTABOP_setup_table, GNTTABOP_query_size, GNTTABOP_get_status_frames)
