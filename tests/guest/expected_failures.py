"""Cases that fail because pyxen is not there yet, by what is missing.

A case that passes in spite of standing here is reported as XPASS: take it out.
"""

from __future__ import annotations

_MISSING: dict[str, tuple[str, ...]] = {
    "page types": (
        *("mmu_update/plain-page", "mmu_update/foreign", "mmu_update/own-number"),
        *("mmu_update/foreign-tables", "va_mapping/otherdomain", "mmuext/foreign"),
        *("mmuext/multi-fault", "mmuext/clear-l1-table", "mmuext/baseptr-plain"),
        *("mmuext/user-baseptr-plain", "entry/xen-frame-by-mmu_update"),
        *("entry/xen-frame-by-va_mapping", "entry/m2p-writable-by-mmu_update"),
        *("entry/m2p-writable-by-va_mapping", "entry/no-frame-by-mmu_update"),
        *("entry/no-frame-by-va_mapping", "entry/writable-table-by-mmu_update"),
        *("entry/writable-table-by-va_mapping", "entry/writable-table-by-write"),
        *("type/pin-mapped-writable", "type/pinned-not-writable", "type/pin-validates"),
        *("level/l2-superpage", "level/l4-recursive-writable", "level/l4-made-writable"),
        *("level/l2-of-plain-page", "level/l2-of-l4", "descriptor/l1-table", "gdt/page-table"),
        *("vcpu_info/l1-table",),
        *("gdt/mapped-writable", "gdt/not-writable-after"),
    ),
    "memory_op: exchange and memory maps": (
        *("memory_op/machine_memory_map", "memory_op/set_memory_map"),
        *("memory_op/exchange-into-xen", "memory_op/exchange-done-too-many"),
        *("exchange/one", "exchange/xen-frame"),
    ),
    "event channels: FIFO, pirqs, domains that do not exist": (
        *("event_channel_op/unmask-free", "event_channel_op/alloc_unbound-nobody"),
        *("event_channel_op/bind_interdomain-nobody", "event_channel_op/bind_pirq"),
        *("event_channel_op/bind_virq-global-elsewhere",),
        *("event_channel_op/status-nobody", "event_channel_op/init_control-bad-frame"),
    ),
    "grants: version 2, map, unmap, copy": (
        *("grant_table_op/set_version-2", "grant_table_op/map-none"),
        *("grant_table_op/unmap-none", "grant_table_op/copy-none", "grant/map-nobody"),
        *("grant/map-fault", "grant/unmap-bad-handle", "grant/copy-own", "grant/copy-over-page"),
        *("grant/copy-to-table", "grant/status-frames-v1"),
    ),
    "traps: sysenter and 32-bit syscall, set_callbacks": (
        *("callbacks/sysenter", "callbacks/syscall32", "callbacks/set_callbacks-bad"),
    ),
    "engine: a null SS makes the kernel privilege level 0": ("trap/null-ss",),
    "call gates": ("descriptor/call-gate",),
}
EXPECTED_FAILURES = {name: reason for reason, names in _MISSING.items() for name in names}
"""Name of the case -> what is missing."""
