"""Hypercalls about one vCPU's state: stack, FPU, segment bases, debug registers, callbacks.

Source: public/xen.h, public/arch-x86/xen-x86_64.h (SEGBASE_*). Entry points are in callback_op.py.
"""

from __future__ import annotations

from pyxen.abi.arch_x86 import SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL
from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.msr import is_canonical
from pyxen.hypervisor.privilege import CR4_DE, update_ports
from pyxen.hypervisor.selector import GS, data_segment
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.pagetable import is_guest_vaddr

# Reserved bits of the debug registers that always read as zero, and as one.
_DR6_ZERO, _DR6_ONE = 0x1000, 0xFFFF_0FF0
_DR7_ZERO, _DR7_ONE = 0xD800, 0x400
_DR7_ENABLED = 0xFF
_DR7_GENERAL_DETECT = 1 << 13
_DR7_PORT = 2

CR4_TSD = 1 << 2
_CR4_GUEST = CR4_TSD | CR4_DE


def stack_switch(d: Domain, v: Vcpu, ss: int, esp: int) -> int:
    """HYPERVISOR_stack_switch: where entries from user mode put their frame."""
    v.pv.kernel_ss = ss & 0xFFFF
    v.pv.kernel_sp = esp
    return 0


def fpu_taskswitch(d: Domain, v: Vcpu, on: int) -> int:
    """HYPERVISOR_fpu_taskswitch: CR0.TS on or off."""
    v.task_switched = bool(on)
    d.engine.set_task_switched(v.task_switched)
    return 0


def set_segment_base(d: Domain, v: Vcpu, which: int, base: int) -> int:
    """HYPERVISOR_set_segment_base. GS_USER_SEL takes a selector: it is loaded for user mode."""
    if which == SEGBASE_GS_USER_SEL:
        _load_user_gs(d, v, base & 0xFFFF)
        return 0
    if which not in (SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL) or not is_canonical(base):
        raise XenError(E.INVAL, f"segment base {which} {base:#x}")
    if which == SEGBASE_FS:
        d.engine.regs.fs_base = base
    elif which == SEGBASE_GS_USER:
        v.pv.gs_base_user = base
    else:
        d.engine.regs.gs_base = base
    return 0


def _load_user_gs(d: Domain, v: Vcpu, selector: int) -> None:
    """GS of user mode from the GDT or LDT. A selector that faults becomes the null selector.

    The selector is the same in both modes; the kernel keeps its base.
    """
    regs = d.engine.regs
    segment = data_segment(d, v, selector | 3) if selector > 3 else None
    if segment is None:
        v.pv.gs_base_user = 0
        regs.set_segment(GS, selector if selector <= 3 else 0, regs.gs_base, 0, 0)
        return
    v.pv.gs_base_user = segment.base
    regs.set_segment(GS, selector | 3, regs.gs_base, segment.limit, segment.attributes)


def set_cr4(d: Domain, v: Vcpu, value: int) -> None:
    """The bits of CR4 that are the guest's choice; others are ignored."""
    v.arch.cr4 = value & _CR4_GUEST
    d.engine.set_tsc_disabled(bool(value & CR4_TSD))


def set_debugreg(d: Domain, v: Vcpu, register: int, value: int) -> int:
    """HYPERVISOR_set_debugreg. Breakpoints may only be at addresses of the guest.

    Breakpoints on ports need CR4.DE; they are looked at when the access is emulated.
    """
    register = debug_register(v, register)
    if register < 4:
        if not is_guest_vaddr(value, 8):
            raise XenError(E.PERM, f"breakpoint at {value:#x}")
    elif value >> 32:
        raise XenError(E.INVAL, f"DR{register} {value:#x}")
    elif register == 6:
        value = value & ~_DR6_ZERO | _DR6_ONE
    else:
        value = _set_dr7(d, v, value & ~_DR7_ZERO | _DR7_ONE)
    d.engine.set_debug_register(register, value)
    return 0


def _set_dr7(d: Domain, v: Vcpu, value: int) -> int:
    """Take the breakpoints on ports out of DR7. Raises: XenError(EPERM)."""
    on_ports = 0
    for n in range(4):
        if value >> 16 + 4 * n & 3 == _DR7_PORT:
            on_ports |= 3 << 2 * n
    if value & _DR7_GENERAL_DETECT:
        raise XenError(E.PERM, f"DR7 {value:#x}: general detect")
    if value & _DR7_ENABLED and on_ports and not v.arch.cr4 & CR4_DE:
        raise XenError(E.PERM, f"DR7 {value:#x}: breakpoints on ports")
    # COMMIT
    v.arch.dr7_emul = value & on_ports if value & _DR7_ENABLED else 0
    update_ports(d, v)
    return value & ~v.arch.dr7_emul


def get_debugreg(d: Domain, v: Vcpu, register: int) -> int:
    """HYPERVISOR_get_debugreg."""
    register = debug_register(v, register)
    value = d.engine.debug_register(register)
    return value | v.arch.dr7_emul if register == 7 else value


def debug_register(v: Vcpu, register: int) -> int:
    """The register that is meant: 4 and 5 are other names of 6 and 7 while CR4.DE is clear.

    Raises: XenError(ENODEV) for a register that does not exist.
    """
    if not 0 <= register < 8 or (register in (4, 5) and v.arch.cr4 & CR4_DE):
        raise XenError(E.NODEV, f"debug register {register}")
    return register + 2 if register in (4, 5) else register
