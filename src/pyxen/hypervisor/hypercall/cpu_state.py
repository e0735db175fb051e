"""Hypercalls about one vCPU's state: stack, FPU, segment bases, debug registers, callbacks.

Source: public/xen.h, public/arch-x86/xen-x86_64.h (SEGBASE_*), public/callback.h, public/nmi.h.
"""

from __future__ import annotations

from pyxen.abi.arch_x86 import SEGBASE_FS, SEGBASE_GS_KERNEL, SEGBASE_GS_USER, SEGBASE_GS_USER_SEL
from pyxen.abi.callback import (
    CALLBACKF_mask_events,
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CallbackRegister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    CallbackUnregister,
)
from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.msr import is_canonical
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.pagetable import is_guest_vaddr

# Reserved bits of the debug registers that always read as zero, and as one.
_DR6_ZERO, _DR6_ONE = 0x1000, 0xFFFF_0FF0
_DR7_ZERO, _DR7_ONE = 0xD800, 0x400
_DR7_ENABLED = 0xFF
_DR7_GENERAL_DETECT = 1 << 13
_DR7_PORT = 2

_CALLBACKS = frozenset(
    {
        CALLBACKTYPE_event,
        CALLBACKTYPE_failsafe,
        CALLBACKTYPE_syscall,
        CALLBACKTYPE_sysenter,
        CALLBACKTYPE_nmi,
        CALLBACKTYPE_syscall32,
    }
)


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
    """HYPERVISOR_set_segment_base. GS_USER_SEL takes a selector: its base becomes user GS."""
    if which == SEGBASE_GS_USER_SEL:
        selector = base & 0xFFFF
        v.pv.gs_base_user = _descriptor_base(d, v, selector) if selector & ~3 else 0
        return 0
    if not is_canonical(base):
        raise XenError(E.INVAL, f"segment base {base:#x}")
    if which == SEGBASE_FS:
        d.engine.regs.fs_base = base
    elif which == SEGBASE_GS_USER:
        v.pv.gs_base_user = base
    elif which == SEGBASE_GS_KERNEL:
        d.engine.regs.gs_base = base
    else:
        raise XenError(E.INVAL, f"segment base {which}")
    return 0


def _descriptor_base(d: Domain, v: Vcpu, selector: int) -> int:
    """Base of a descriptor of the guest's GDT; 0 if there is none."""
    page, index = selector >> 12, (selector & 0xFFF) >> 3
    if selector & 4 or page >= len(v.gdt_frames):
        return 0
    descriptor = d.memory.words[(v.gdt_frames[page] << 9) + index]
    return (descriptor >> 16 & 0xFFFFFF) | (descriptor >> 32 & 0xFF000000)


def set_debugreg(d: Domain, v: Vcpu, register: int, value: int) -> int:
    """HYPERVISOR_set_debugreg. Breakpoints may only be at addresses of the guest, not on ports."""
    register = debug_register(register)
    if register < 4:
        if not is_guest_vaddr(value, 8):
            raise XenError(E.PERM, f"breakpoint at {value:#x}")
    elif value >> 32:
        raise XenError(E.INVAL, f"DR{register} {value:#x}")
    elif register == 6:
        value = value & ~_DR6_ZERO | _DR6_ONE
    else:
        value = value & ~_DR7_ZERO | _DR7_ONE
        on_port = any(value >> shift & 3 == _DR7_PORT for shift in range(16, 32, 4))
        if value & _DR7_GENERAL_DETECT or (value & _DR7_ENABLED and on_port):
            raise XenError(E.PERM, f"DR7 {value:#x}")
    # COMMIT
    d.engine.set_debug_register(register, value)
    return 0


def get_debugreg(d: Domain, v: Vcpu, register: int) -> int:
    """HYPERVISOR_get_debugreg."""
    return d.engine.debug_register(debug_register(register))


def debug_register(register: int) -> int:
    """The register that is meant: 4 and 5 are other names of 6 and 7, as CR4.DE is clear.

    Raises: XenError(ENODEV) for a register that does not exist.
    """
    if not 0 <= register < 8:
        raise XenError(E.NODEV, f"debug register {register}")
    return register + 2 if register in (4, 5) else register


def callback_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """HYPERVISOR_callback_op: register and unregister the guest's entry points."""
    if command == CALLBACKOP_register:
        register = CallbackRegister.unpack(d.space.read(argument, CallbackRegister.SIZE))
        # On x86-64 xen_callback_t is the address itself.
        return _register(v, register.type, register.flags, register.address)
    if command == CALLBACKOP_unregister:
        unregister = CallbackUnregister.unpack(d.space.read(argument, CallbackUnregister.SIZE))
        if unregister.type not in _CALLBACKS:
            raise XenError(E.NOSYS, f"callback {unregister.type}")
        if unregister.type != CALLBACKTYPE_nmi:
            raise XenError(E.INVAL, f"callback {unregister.type} stays")
        v.pv.nmi_callback = 0
        return 0
    raise XenError(E.NOSYS, f"callback_op {command}")


def _register(v: Vcpu, kind: int, flags: int, address: int) -> int:
    if address and not is_canonical(address):
        raise XenError(E.INVAL, f"callback at {address:#x}")
    if kind == CALLBACKTYPE_event:
        v.pv.event_callback = address
    elif kind == CALLBACKTYPE_failsafe:
        v.pv.failsafe_callback = address
        v.pv.failsafe_callback_flags = flags & CALLBACKF_mask_events
    elif kind == CALLBACKTYPE_syscall:
        v.pv.syscall_callback = address
        v.pv.syscall_callback_flags = flags & CALLBACKF_mask_events
    elif kind == CALLBACKTYPE_nmi:
        v.pv.nmi_callback = address
    else:
        # Also sysenter and syscall32: a guest that is refused these uses `int 0x80` instead.
        raise XenError(E.NOSYS, f"callback {kind}")
    return 0


def set_callbacks(d: Domain, v: Vcpu, event: int, failsafe: int, syscall: int) -> int:
    """HYPERVISOR_set_callbacks, the older form of callback_op."""
    _register(v, CALLBACKTYPE_event, 0, event)
    _register(v, CALLBACKTYPE_failsafe, 0, failsafe)
    _register(v, CALLBACKTYPE_syscall, 0, syscall)
    return 0


def nmi_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """HYPERVISOR_nmi_op: the older way to register the NMI callback of vCPU 0."""
    if command == 0:
        return _register(v, CALLBACKTYPE_nmi, 0, d.space.read_u64(argument))
    if command == 1:
        return _register(v, CALLBACKTYPE_nmi, 0, 0)
    raise XenError(E.NOSYS, f"nmi_op {command}")
