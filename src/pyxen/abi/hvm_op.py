"""Operations of translated guests: the arguments of HYPERVISOR_hvm_op.

Alternative P2Ms are left out. Source: public/hvm/hvm_op.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, array, char, u8, u16, u32, u64, xen_struct

_HEADERS = ("hvm/hvm_op.h",)
_PUBLIC = "hvm/hvm_op.h"

# Commands of HYPERVISOR_hvm_op.
HVMOP_set_param = 0
HVMOP_get_param = 1
HVMOP_flush_tlbs = 5
HVMOP_pagetable_dying = 9
HVMOP_get_time = 10
HVMOP_xentrace = 11
HVMOP_set_mem_access = 12
HVMOP_get_mem_access = 13
HVMOP_get_mem_type = 15
HVMOP_set_evtchn_upcall_vector = 23
HVMOP_guest_request_vm_event = 24
HVMOP_altp2m = 25

# xen_hvm_get_mem_type.mem_type
HVMMEM_ram_rw = 0
HVMMEM_ram_ro = 1
HVMMEM_mmio_dm = 2
HVMMEM_unused = 3
HVMMEM_ioreq_server = 4

# How a device model takes buffered requests.
HVM_IOREQSRV_BUFIOREQ_OFF = 0
HVM_IOREQSRV_BUFIOREQ_LEGACY = 1
HVM_IOREQSRV_BUFIOREQ_ATOMIC = 2


@xen_struct("xen_hvm_param_t", header=_PUBLIC, size=16)
class XenHvmParam(XenStruct):
    """One HVM_PARAM_* of a domain."""

    domid: u16 = 0
    pad: u16 = 0
    index: u32 = 0
    value: u64 = 0


@xen_struct("xen_hvm_pagetable_dying_t", header=_PUBLIC, size=16)
class XenHvmPagetableDying(XenStruct):
    """A page table is about to be torn down."""

    domid: u16 = 0
    pad: Annotated[tuple[int, ...], array(u16, 3)] = ()
    gpa: u64 = 0


@xen_struct("xen_hvm_get_time_t", header=_PUBLIC, size=8)
class XenHvmGetTime(XenStruct):
    """Out: Xen's clock, ns."""

    now: u64 = 0


@xen_struct("xen_hvm_xentrace_t", header=_PUBLIC, size=32)
class XenHvmXentrace(XenStruct):
    """A record for the trace buffer."""

    event: u16 = 0
    extra_bytes: u16 = 0
    extra: Annotated[bytes, char(28)] = b""


@xen_struct("xen_hvm_get_mem_type_t", header=_PUBLIC, size=16)
class XenHvmGetMemType(XenStruct):
    """Out: mem_type (HVMMEM_*) of a frame."""

    domid: u16 = 0
    mem_type: u16 = 0
    pad: Annotated[tuple[int, ...], array(u16, 2)] = ()
    pfn: u64 = 0


@xen_struct("xen_hvm_evtchn_upcall_vector_t", header=_PUBLIC, size=8)
class XenHvmEvtchnUpcallVector(XenStruct):
    """Which interrupt vector tells a vCPU of events."""

    vcpu: u32 = 0
    vector: u8 = 0
