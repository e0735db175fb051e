"""The sub-commands of hypercalls: where their names are declared, and what their structures hold.

A command is listed here when it has a structure; the names of all are found in abi/ by prefix.
Source: the public header of each module of abi/.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from pyxen.abi import callback, event_channel, grant_table, memory, physdev, sched, vcpu, version
from pyxen.abi._struct import XenStruct


@dataclass(frozen=True, slots=True)
class Command:
    """One sub-command: its structure, the fields the guest fills in, and those it gets back.

    pointless: the pointer means nothing, and is not shown.
    """

    structure: type[XenStruct] | None = None
    fields: tuple[str, ...] = ()
    out: tuple[str, ...] = ()
    pointless: bool = False

    @property
    def size(self) -> int:
        """Of the structure, in bytes."""
        return self.structure.SIZE if self.structure is not None else 0


class Family(NamedTuple):
    """A hypercall with sub-commands: module and prefix of their names; which argument points."""

    module: str
    prefix: str
    commands: Mapping[str, Command]
    pointer: str = "arg"


def _command(structure: type[XenStruct], fields: str, out: str = "") -> Command:
    return Command(structure, tuple(fields.split()), tuple(out.split()))


_NOTHING = Command(pointless=True)

_EVENT_CHANNEL_OP = {
    "bind_interdomain": _command(
        event_channel.EvtchnBindInterdomain, "remote_dom remote_port", "local_port"
    ),
    "bind_virq": _command(event_channel.EvtchnBindVirq, "virq vcpu", "port"),
    "bind_pirq": _command(event_channel.EvtchnBindPirq, "pirq flags", "port"),
    "close": _command(event_channel.EvtchnClose, "port"),
    "send": _command(event_channel.EvtchnSend, "port"),
    "status": _command(event_channel.EvtchnStatus, "dom port", "status vcpu"),
    "alloc_unbound": _command(event_channel.EvtchnAllocUnbound, "dom remote_dom", "port"),
    "bind_ipi": _command(event_channel.EvtchnBindIpi, "vcpu", "port"),
    "bind_vcpu": _command(event_channel.EvtchnBindVcpu, "port vcpu"),
    "unmask": _command(event_channel.EvtchnUnmask, "port"),
    "reset": _command(event_channel.EvtchnReset, "dom"),
    "init_control": _command(
        event_channel.EvtchnInitControl, "control_gfn offset vcpu", "link_bits"
    ),
    "expand_array": _command(event_channel.EvtchnExpandArray, "array_gfn"),
    "set_priority": _command(event_channel.EvtchnSetPriority, "port priority"),
}

_SCHED_OP = {
    "yield": _NOTHING,
    "block": _NOTHING,
    "shutdown": _command(sched.SchedShutdown, "reason"),
    "poll": _command(sched.SchedPoll, "nr_ports timeout"),
    "remote_shutdown": _command(sched.SchedRemoteShutdown, "domain_id reason"),
    "shutdown_code": _command(sched.SchedShutdown, "reason"),
    "watchdog": _command(sched.SchedWatchdog, "id timeout"),
    "pin_override": _command(sched.SchedPinOverride, "pcpu"),
}

_VCPU_OP = {
    "register_runstate_memory_area": _command(vcpu.VcpuRegisterRunstateMemoryArea, "addr"),
    "set_periodic_timer": _command(vcpu.VcpuSetPeriodicTimer, "period_ns"),
    "set_singleshot_timer": _command(vcpu.VcpuSetSingleshotTimer, "timeout_abs_ns flags"),
    "register_vcpu_info": _command(vcpu.VcpuRegisterVcpuInfo, "mfn offset"),
    "get_physid": _command(vcpu.VcpuGetPhysid, "", "phys_id"),
    "register_vcpu_time_memory_area": _command(vcpu.VcpuRegisterTimeMemoryArea, "addr"),
}

_RESERVATION = _command(memory.XenMemoryReservation, "nr_extents extent_order domid")
_OF_DOMAIN = _command(memory.XenMemoryDomain, "domid")

_MEMORY_OP = {
    "increase_reservation": _RESERVATION,
    "decrease_reservation": _RESERVATION,
    "populate_physmap": _RESERVATION,
    "maximum_ram_page": _NOTHING,
    "current_reservation": _OF_DOMAIN,
    "maximum_reservation": _OF_DOMAIN,
    "maximum_gpfn": _OF_DOMAIN,
    "machphys_mfn_list": _command(memory.XenMachphysMfnList, "max_extents", "nr_extents"),
    "add_to_physmap": _command(memory.XenAddToPhysmap, "domid space idx gpfn"),
    "memory_map": _command(memory.XenMemoryMap, "nr_entries", "nr_entries"),
    "exchange": _command(
        memory.XenMemoryExchange,
        "in_.nr_extents in_.extent_order out.nr_extents out.extent_order",
        "nr_exchanged",
    ),
    "machphys_mapping": _command(memory.XenMachphysMapping, "", "v_start v_end max_mfn"),
    "remove_from_physmap": _command(memory.XenRemoveFromPhysmap, "domid gpfn"),
}

_COPY = "source.u source.domid source.offset dest.u dest.domid dest.offset len flags"

_GRANT_TABLE_OP = {
    "map_grant_ref": _command(
        grant_table.GnttabMapGrantRef, "ref dom flags host_addr", "handle status"
    ),
    "unmap_grant_ref": _command(grant_table.GnttabUnmapGrantRef, "handle host_addr", "status"),
    "setup_table": _command(grant_table.GnttabSetupTable, "dom nr_frames", "status"),
    "dump_table": _command(grant_table.GnttabDumpTable, "dom", "status"),
    "transfer": _command(grant_table.GnttabTransfer, "mfn domid ref", "status"),
    "copy": _command(grant_table.GnttabCopy, _COPY, "status"),
    "query_size": _command(grant_table.GnttabQuerySize, "dom", "nr_frames max_nr_frames status"),
    "unmap_and_replace": _command(
        grant_table.GnttabUnmapAndReplace, "handle host_addr new_addr", "status"
    ),
    "set_version": _command(grant_table.GnttabSetVersion, "version", "version"),
    "get_status_frames": _command(grant_table.GnttabGetStatusFrames, "dom nr_frames", "status"),
    "get_version": _command(grant_table.GnttabGetVersion, "dom", "version"),
    "swap_grant_ref": _command(grant_table.GnttabSwapGrantRef, "ref_a ref_b", "status"),
    "cache_flush": _command(grant_table.GnttabCacheFlush, "offset length op"),
}

_XEN_VERSION = {
    "version": _NOTHING,
    "pagesize": _NOTHING,
    "get_features": _command(version.XenFeatureInfo, "submap_idx", "submap"),
    "platform_parameters": _command(version.XenPlatformParameters, "", "virt_start"),
}

_PHYSDEV_OP = {
    "irq_status_query": _command(physdev.PhysdevIrqStatusQuery, "irq", "flags"),
    "set_iopl": _command(physdev.PhysdevSetIopl, "iopl"),
    "set_iobitmap": _command(physdev.PhysdevSetIobitmap, "bitmap nr_ports"),
    "eoi": _command(physdev.PhysdevEoi, "irq"),
    "map_pirq": _command(physdev.PhysdevMapPirq, "domid type index pirq", "pirq"),
    "unmap_pirq": _command(physdev.PhysdevUnmapPirq, "domid pirq"),
}

_CALLBACK_OP = {
    "register": _command(callback.CallbackRegister, "type flags address"),
    "unregister": _command(callback.CallbackUnregister, "type"),
}

COMMANDS = {
    "event_channel_op": Family("event_channel", "EVTCHNOP_", _EVENT_CHANNEL_OP),
    "sched_op": Family("sched", "SCHEDOP_", _SCHED_OP),
    "vcpu_op": Family("vcpu", "VCPUOP_", _VCPU_OP),
    "memory_op": Family("memory", "XENMEM_", _MEMORY_OP),
    "grant_table_op": Family("grant_table", "GNTTABOP_", _GRANT_TABLE_OP, "uop"),
    "xen_version": Family("version", "XENVER_", _XEN_VERSION),
    "physdev_op": Family("physdev", "PHYSDEVOP_", _PHYSDEV_OP),
    "callback_op": Family("callback", "CALLBACKOP_", _CALLBACK_OP),
    "vm_assist": Family("xen", "VMASST_CMD_", {}),
    "nmi_op": Family("nmi", "XENNMI_", {}),
}

_NO_ARGUMENTS = ("TLB_FLUSH_LOCAL", "TLB_FLUSH_MULTI", "TLB_FLUSH_ALL", "FLUSH_CACHE")

MMUEXT: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((*_NO_ARGUMENTS, "FLUSH_CACHE_GLOBAL"), ()),
    **dict.fromkeys(("INVLPG_LOCAL", "INVLPG_MULTI", "INVLPG_ALL"), ("linear_addr",)),
    "SET_LDT": ("linear_addr", "nr_ents"),
    "COPY_PAGE": ("mfn", "src_mfn"),
}
"""mmuext_op's operations: which of its fields count; `mfn` where it is not listed."""
