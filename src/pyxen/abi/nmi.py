"""Non-maskable interrupts: the arguments of HYPERVISOR_nmi_op.

Source: public/nmi.h.
"""

from pyxen.abi._struct import XenStruct, u64, xen_struct

_HEADERS = ("nmi.h",)
_PUBLIC = "nmi.h"


# arch_shared_info.nmi_reason
XEN_NMIREASON_io_error = 1 << 0
XEN_NMIREASON_pci_serr = 1 << 1
XEN_NMIREASON_unknown = 1 << 2

# Commands of HYPERVISOR_nmi_op.
XENNMI_register_callback = 0
XENNMI_unregister_callback = 1


@xen_struct("xennmi_callback_t", header=_PUBLIC, size=16)
class XennmiCallback(XenStruct):
    """Where the guest kernel is entered for an NMI."""

    handler_address: u64 = 0
    pad: u64 = 0
