"""HYPERVISOR_hvm_op from a PV domain: the clock, and refusals.

Source: public/hvm/hvm_op.h; the order of checks from xen/arch/x86/hvm/hvm.c.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.hvm_op import (
    HVMOP_altp2m,
    HVMOP_flush_tlbs,
    HVMOP_get_mem_type,
    HVMOP_get_param,
    HVMOP_get_time,
    HVMOP_guest_request_vm_event,
    HVMOP_pagetable_dying,
    HVMOP_set_evtchn_upcall_vector,
    HVMOP_set_param,
    HVMOP_xentrace,
    XenHvmGetMemType,
    XenHvmGetTime,
    XenHvmPagetableDying,
    XenHvmParam,
    XenHvmXentrace,
)
from pyxen.abi.hvm_params import HVM_NR_PARAMS
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.domid import check_own, peer_domid
from pyxen.hypervisor.vcpu import Vcpu

_MAX_TRACE_BYTES = 28
_MAX_TRACE_EVENT = 0xFFF


def hvm_op(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command."""
    handler = _COMMANDS.get(command)
    if handler is None:
        raise XenError(E.NOSYS, f"hvm_op {command}")
    return handler(d, argument)


def _get_time(d: Domain, argument: int) -> int:
    d.space.write(argument, XenHvmGetTime(now=d.time.now_ns()).pack())
    return 0


def _xentrace(d: Domain, argument: int) -> int:
    """Nobody traces, so a valid record is dropped."""
    op = XenHvmXentrace.unpack(d.space.read(argument, XenHvmXentrace.SIZE))
    if op.extra_bytes > _MAX_TRACE_BYTES or op.event > _MAX_TRACE_EVENT:
        raise XenError(E.INVAL, f"a trace record of {op.extra_bytes} bytes, event {op.event:#x}")
    return 0


def _guest_request_vm_event(d: Domain, argument: int) -> int:
    """Nobody monitors."""
    if argument:
        raise XenError(E.INVAL, "there is no argument")
    return 0


def _param(d: Domain, argument: int) -> int:
    op = XenHvmParam.unpack(d.space.read(argument, XenHvmParam.SIZE))
    if op.index >= HVM_NR_PARAMS:
        raise XenError(E.INVAL, f"there is no parameter {op.index}")
    peer_domid(d, op.domid)
    return _not_pv(d, argument)


def _get_mem_type(d: Domain, argument: int) -> int:
    op = XenHvmGetMemType.unpack(d.space.read(argument, XenHvmGetMemType.SIZE))
    check_own(d, peer_domid(d, op.domid))
    return _not_pv(d, argument)


def _pagetable_dying(d: Domain, argument: int) -> int:
    op = XenHvmPagetableDying.unpack(d.space.read(argument, XenHvmPagetableDying.SIZE))
    if peer_domid(d, op.domid) != d.domid:
        raise XenError(E.OPNOTSUPP, "another domain's page tables")
    return _not_pv(d, argument)


def _not_pv(d: Domain, argument: int) -> int:
    raise XenError(E.INVAL, "only for HVM and PVH domains")


def _altp2m(d: Domain, argument: int) -> int:
    raise XenError(E.OPNOTSUPP, "the host has no alternative P2Ms")


_COMMANDS = {
    HVMOP_set_param: _param,
    HVMOP_get_param: _param,
    HVMOP_flush_tlbs: _not_pv,
    HVMOP_pagetable_dying: _pagetable_dying,
    HVMOP_get_time: _get_time,
    HVMOP_xentrace: _xentrace,
    HVMOP_get_mem_type: _get_mem_type,
    HVMOP_set_evtchn_upcall_vector: _not_pv,
    HVMOP_guest_request_vm_event: _guest_request_vm_event,
    HVMOP_altp2m: _altp2m,
}
