"""Cases that fail because pyxen is not there yet, by what is missing.

A case that passes in spite of standing here is reported as XPASS: take it out.
"""

from __future__ import annotations

_MISSING: dict[str, tuple[str, ...]] = {
    "event channels: FIFO, pirqs, domains that do not exist": (
        *("event_channel_op/unmask-free", "event_channel_op/alloc_unbound-nobody"),
        *("event_channel_op/bind_interdomain-nobody", "event_channel_op/bind_pirq"),
        *("event_channel_op/bind_virq-global-elsewhere",),
        *("event_channel_op/status-nobody", "event_channel_op/init_control-bad-frame"),
    ),
    "traps: sysenter and 32-bit syscall, set_callbacks": (
        *("callbacks/sysenter", "callbacks/syscall32", "callbacks/set_callbacks-bad"),
    ),
    "engine: a null SS makes the kernel privilege level 0": ("trap/null-ss",),
    "call gates": ("descriptor/call-gate",),
}
EXPECTED_FAILURES = {name: reason for reason, names in _MISSING.items() for name in names}
"""Name of the case -> what is missing."""
