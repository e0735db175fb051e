"""Which segment descriptors a guest may have in its GDT and LDT, and what Xen makes of them.

Source: check_descriptor of xen/arch/x86/pv/descriptor-tables.c; Intel SDM volume 3, 3.4.5, 5.8.3.
"""

from __future__ import annotations

from collections.abc import Iterable

from pyxen.abi.arch_x86 import FIRST_RESERVED_GDT_ENTRY, FLAT_KERNEL_CS
from pyxen.abi.errno import E
from pyxen.errors import XenError

_PRESENT = 1 << 47
_NOT_SYSTEM = 1 << 44
_GUEST_LEVEL = 3
_LEVEL_SHIFT = 45
_KIND_SHIFT = 40
_CALL_GATE = 0xC
_GATE_SELECTOR_SHIFT = 16
_GATE_RESERVED = 0xFF << 32
_LDT = 4


def checked_descriptor(descriptor: int) -> int | None:
    """What is stored when a guest asks for this descriptor; None if it may not have it.

    Code and data are at level 3: a guest kernel has no other on Xen. A call gate gets level 0, so
    that its use is #GP, and its target keeps the level that was asked for. Other gates and system
    segments are refused. What is not present is as the guest wants it.
    """
    if not descriptor & _PRESENT:
        return descriptor
    if descriptor & _NOT_SYSTEM:
        return descriptor | _GUEST_LEVEL << _LEVEL_SHIFT
    kind = descriptor >> _KIND_SHIFT & 0xF
    if kind == 0:  # the second half of a call gate
        return descriptor
    target = descriptor >> _GATE_SELECTOR_SHIFT & 0xFFFF
    if kind != _CALL_GATE or not _may_be_entered(target) or descriptor & _GATE_RESERVED:
        return None
    descriptor &= ~(3 << _LEVEL_SHIFT)
    return descriptor | _GUEST_LEVEL << _GATE_SELECTOR_SHIFT


def checked_table(descriptors: Iterable[int]) -> dict[int, int]:
    """Index -> what is stored, for those descriptors that Xen changes.

    Raises: XenError(EINVAL) if the guest may not have one of them.
    """
    changed = {}
    for n, descriptor in enumerate(descriptors):
        checked = checked_descriptor(descriptor)
        if checked is None:
            raise XenError(E.INVAL, f"descriptor {descriptor:#x}")
        if checked != descriptor:
            changed[n] = checked
    return changed


def _may_be_entered(selector: int) -> bool:
    """Whether a gate's target is the guest's own, or the kernel code segment that Xen offers."""
    own = selector >> 3 < FIRST_RESERVED_GDT_ENTRY or selector & _LDT
    return bool(own) or selector == FLAT_KERNEL_CS
