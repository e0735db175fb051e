"""HYPERVISOR_vm_assist. Source: public/xen.h (VMASST_*), and Xen for which ones there are."""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.xen import (
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_4gb_segments,
    VMASST_TYPE_4gb_segments_notify,
    VMASST_TYPE_architectural_iopl,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_pae_extended_cr3,
    VMASST_TYPE_runstate_update_flag,
    VMASST_TYPE_writable_pagetables,
)
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.privilege import update_ports
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory import layout
from pyxen.types import PAGE_SHIFT, U32

_VALID = frozenset(
    {
        VMASST_TYPE_4gb_segments,
        VMASST_TYPE_4gb_segments_notify,
        VMASST_TYPE_writable_pagetables,
        VMASST_TYPE_pae_extended_cr3,
        VMASST_TYPE_architectural_iopl,
        VMASST_TYPE_runstate_update_flag,
        VMASST_TYPE_m2p_strict,
    }
)
"""A 64-bit PV domain may say all of them; the first two and pae_extended_cr3 mean nothing to it."""


def vm_assist(d: Domain, v: Vcpu, command: int, kind: int) -> int:
    """Switch one on or off. Raises: XenError(EINVAL), then XenError(ENOSYS)."""
    command, kind = command & U32, kind & U32
    if kind not in _VALID:
        raise XenError(E.INVAL, f"vm_assist {kind}")
    if command not in (VMASST_CMD_enable, VMASST_CMD_disable):
        raise XenError(E.NOSYS, f"vm_assist command {command}")
    # COMMIT
    if command == VMASST_CMD_enable:
        d.vm_assists.add(kind)
    else:
        d.vm_assists.discard(kind)
    d.pv.architectural_iopl = int(VMASST_TYPE_architectural_iopl in d.vm_assists)
    update_ports(d, v)
    if kind == VMASST_TYPE_m2p_strict:
        _show_m2p(d, strict=command == VMASST_CMD_enable)
    return 0


def _show_m2p(d: Domain, *, strict: bool) -> None:
    """Whether user mode may read the M2P: in the tables in use now, and in others when loaded."""
    d.pv.m2p_l4_entry = layout.M2P_SLOT_ENTRY_STRICT if strict else layout.M2P_SLOT_ENTRY
    for vcpu in d.vcpus.values():
        if vcpu.pv.cr3:
            layout.set_xen_slots(d.memory, vcpu.pv.cr3 >> PAGE_SHIFT, d.pv.m2p_l4_entry)
    d.flush_tlb()
