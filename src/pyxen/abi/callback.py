"""Entry points of a PV kernel: the arguments of HYPERVISOR_callback_op.

Source: public/callback.h.
"""

from pyxen.abi._struct import XenStruct, u16, u64, xen_struct

_HEADERS = ("callback.h",)
_PUBLIC = "callback.h"


# callback_register.type
CALLBACKTYPE_event = 0
CALLBACKTYPE_failsafe = 1
CALLBACKTYPE_syscall = 2
CALLBACKTYPE_sysenter_deprecated = 3
CALLBACKTYPE_nmi = 4
CALLBACKTYPE_sysenter = 5
CALLBACKTYPE_syscall32 = 7

# callback_register.flags: events are masked on entry.
CALLBACKF_mask_events = 1 << 0

# Commands of HYPERVISOR_callback_op.
CALLBACKOP_register = 0
CALLBACKOP_unregister = 1


@xen_struct("callback_register_t", header=_PUBLIC, size=16)
class CallbackRegister(XenStruct):
    """Where the guest kernel is entered for one CALLBACKTYPE_*."""

    type: u16 = 0
    flags: u16 = 0
    address: u64 = 0


@xen_struct("callback_unregister_t", header=_PUBLIC, size=4)
class CallbackUnregister(XenStruct):
    """Take back an entry point (not every type can be)."""

    type: u16 = 0
    _unused: u16 = 0
