"""Where the guest kernel is entered: callback_op, set_callbacks and nmi_op.

Source: public/callback.h, public/nmi.h. The handler of NMIs is that of trap 2.
"""

from __future__ import annotations

from pyxen.abi import callback
from pyxen.abi.arch_x86 import FLAT_KERNEL_CS
from pyxen.abi.arch_x86_traps import X86_EXC_NMI
from pyxen.abi.callback import CallbackRegister, CallbackUnregister
from pyxen.abi.errno import E
from pyxen.abi.nmi import XENNMI_register_callback, XENNMI_unregister_callback, XennmiCallback
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.msr import is_canonical
from pyxen.hypervisor.vcpu import Vcpu

_FIXED = frozenset(
    {
        callback.CALLBACKTYPE_event,
        callback.CALLBACKTYPE_failsafe,
        callback.CALLBACKTYPE_syscall,
        callback.CALLBACKTYPE_sysenter,
        callback.CALLBACKTYPE_syscall32,
    }
)
"""These can be replaced, but not taken back."""


def callback_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """HYPERVISOR_callback_op: register and unregister the guest's entry points."""
    if command == callback.CALLBACKOP_register:
        register = CallbackRegister.unpack(d.space.read(argument, CallbackRegister.SIZE))
        # On x86-64 xen_callback_t is the address itself.
        return _register(v, register.type, register.flags, register.address)
    if command == callback.CALLBACKOP_unregister:
        unregister = CallbackUnregister.unpack(d.space.read(argument, CallbackUnregister.SIZE))
        if unregister.type in _FIXED:
            raise XenError(E.INVAL, f"callback {unregister.type} stays")
        if unregister.type != callback.CALLBACKTYPE_nmi:
            raise XenError(E.NOSYS, f"callback {unregister.type}")
        return _set_nmi_handler(v, 0)
    raise XenError(E.NOSYS, f"callback_op {command}")


def _register(v: Vcpu, kind: int, flags: int, address: int) -> int:
    """Note one entry point. Raises: XenError(EINVAL) for the address, (ENOSYS) for the type."""
    if not is_canonical(address):
        raise XenError(E.INVAL, f"callback at {address:#x}")
    mask = flags & callback.CALLBACKF_mask_events
    match kind:
        case callback.CALLBACKTYPE_event:
            v.pv.event_callback = address
        case callback.CALLBACKTYPE_failsafe:
            v.pv.failsafe_callback, v.pv.failsafe_callback_flags = address, mask
        case callback.CALLBACKTYPE_syscall:
            v.pv.syscall_callback, v.pv.syscall_callback_flags = address, mask
        case callback.CALLBACKTYPE_nmi:
            _set_nmi_handler(v, address)
        case callback.CALLBACKTYPE_sysenter:
            v.arch.sysenter_callback, v.arch.sysenter_masks_events = address, bool(mask)
        case callback.CALLBACKTYPE_syscall32:
            v.arch.syscall32_callback = address
        case _:  # also sysenter_deprecated
            raise XenError(E.NOSYS, f"callback {kind}")
    return 0


def _set_nmi_handler(v: Vcpu, address: int) -> int:
    flags = v.pv.TRAP_MASK_EVENTS | FLAT_KERNEL_CS << 16
    v.pv.traps_address[X86_EXC_NMI] = address
    v.pv.traps_flags[X86_EXC_NMI] = flags if address else 0
    return 0


def set_callbacks(d: Domain, v: Vcpu, event: int, failsafe: int, syscall: int) -> int:
    """HYPERVISOR_set_callbacks, the older form. An address that is refused is left out."""
    for kind, address in (
        (callback.CALLBACKTYPE_event, event),
        (callback.CALLBACKTYPE_failsafe, failsafe),
        (callback.CALLBACKTYPE_syscall, syscall),
    ):
        if is_canonical(address):
            _register(v, kind, 0, address)
    return 0


def nmi_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """HYPERVISOR_nmi_op: the older way to register the calling vCPU's NMI handler."""
    if command == XENNMI_register_callback:
        record = XennmiCallback.unpack(d.space.read(argument, XennmiCallback.SIZE))
        return _register(v, callback.CALLBACKTYPE_nmi, 0, record.handler_address)
    if command == XENNMI_unregister_callback:
        return _set_nmi_handler(v, 0)
    raise XenError(E.NOSYS, f"nmi_op {command}")
