"""What a selector names: the descriptors of a vCPU, and which of them user mode may run on.

Source: Intel SDM volume 3, 3.4.5 (descriptors) and volume 2, IRET; the descriptors themselves are
the guest's, but for the reserved ones of public/arch-x86/xen-x86_64.h.
"""

from __future__ import annotations

from pyxen.abi.arch_x86_traps import X86_EXC_GP, X86_EXC_NP, X86_EXC_SS
from pyxen.cpu.base import SegmentCache, Trap
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.memory.pagetable import PTE_PRESENT, frame_of

ES, CS, SS, DS, FS, GS = range(6)
_LDT = 4
_LDT_PAGE = 16
"""Where the LDT begins in a vCPU's descriptor window, in pages."""

_PRESENT = 1 << 47
_NOT_SYSTEM = 1 << 44
_CODE = 1 << 43
_CONFORMING = 1 << 42
_WRITABLE = 1 << 41
"""Of data; for code it means readable."""
LONG = 1 << 53
_BIG = 1 << 54
_GRANULARITY = 1 << 55
_ATTRIBUTES = 0x00F0_FF00


def error_code(selector: int) -> int:
    """The error code that names a selector."""
    return selector & 0xFFFC


def descriptor(d: Domain, v: Vcpu, selector: int) -> int | None:
    """The 64 bits that a selector names; None if its table does not reach so far."""
    if selector & _LDT and selector >> 3 >= v.pv.ldt_entries:
        return None
    page = (selector >> 12 & 15) + (_LDT_PAGE if selector & _LDT else 0)
    mapping = d.memory.read_u64(layout.descriptor_pte_maddr(v.vcpu_id, page))
    if not mapping & PTE_PRESENT:
        return None
    return d.memory.words[(frame_of(mapping) << 9) + ((selector & 0xFFF) >> 3)]


def privilege(entry: int) -> int:
    """The privilege level of a descriptor."""
    return entry >> 45 & 3


def cache(entry: int) -> SegmentCache:
    """What a processor keeps of a descriptor of code or data."""
    limit = entry & 0xFFFF | entry >> 32 & 0xF_0000
    if entry & _GRANULARITY:
        limit = limit << 12 | 0xFFF
    base = (entry >> 16 & 0xFF_FFFF) | (entry >> 32 & 0xFF00_0000)
    return SegmentCache(base, limit, entry >> 32 & _ATTRIBUTES)


def code_segment(d: Domain, v: Vcpu, selector: int, *, user: bool) -> SegmentCache | Trap:
    """The code segment that IRET would load, or its fault.

    Descriptors of the guest have level 3 (descriptor.py); its kernel may also use Xen's own.
    """
    fault = Trap(X86_EXC_GP, error_code(selector))
    entry = descriptor(d, v, selector)
    if not error_code(selector) or entry is None or entry & _NOT_SYSTEM == 0:
        return fault
    if not entry & _CODE or (user and not entry & _CONFORMING and privilege(entry) != 3):
        return fault
    if entry & LONG and entry & _BIG:
        return fault
    if not user and not entry & LONG:
        return fault
    if not entry & _PRESENT:
        return Trap(X86_EXC_NP, error_code(selector))
    return cache(entry)


def stack_segment(d: Domain, v: Vcpu, selector: int, *, user: bool) -> SegmentCache | Trap:
    """The stack segment that IRET would load, or its fault."""
    fault = Trap(X86_EXC_GP, error_code(selector))
    entry = descriptor(d, v, selector)
    if not error_code(selector) or entry is None or entry & (_NOT_SYSTEM | _CODE) != _NOT_SYSTEM:
        return fault
    if not entry & _WRITABLE or (user and privilege(entry) != 3):
        return fault
    if not entry & _PRESENT:
        return Trap(X86_EXC_SS, error_code(selector))
    return cache(entry)


def data_segment(d: Domain, v: Vcpu, selector: int) -> SegmentCache | None:
    """What MOV to a data segment register would load for user mode; None if it would fault.

    selector: not null.
    """
    entry = descriptor(d, v, selector)
    if entry is None or not entry & _NOT_SYSTEM or not entry & _PRESENT:
        return None
    if entry & _CODE and not entry & _WRITABLE:
        return None
    if not (entry & _CODE and entry & _CONFORMING) and privilege(entry) != 3:
        return None
    return cache(entry)
