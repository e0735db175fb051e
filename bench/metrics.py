"""What is measured: names, units, and the targets that the project set itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of one run; less is better.

    ratio: the target as a multiple of QEMU's median. limit: the target in the metric's unit.
    against: the ratio is to this metric of the same peer instead.
    """

    name: str
    title: str
    unit: str
    ratio: float | None = None
    limit: float | None = None
    against: str | None = None


BOOT: Final = (
    Metric("first_byte", "create to first console byte", "s", limit=0.5),
    Metric("first_byte_cold", "the same, xend not running", "s"),
    Metric("kernel_banner", "create to Linux's first line", "s"),
    Metric("user_space", "create to user space", "s", ratio=1.1),
    Metric("prompt", "create to the prompt", "s"),
    Metric("prompt_cpu", "CPU time until the prompt", "s"),
)
SECTIONS: Final = (
    Metric("null_syscall", "null system call", "us", ratio=1.5),
    Metric("page_fault", "page fault", "us"),
    Metric("fork_exec", "50 × fork and exec", "s", ratio=2.0),
    Metric("sh_loop", "sh, 20000 turns of a loop", "s"),
    Metric("pipe", "pipe, there and back", "us"),
    Metric("memory_copy", "memory copy", "us/MiB"),
    Metric("md5sum", "md5sum of 50 MiB", "s", ratio=1.3),
    Metric("dd_bs1", "dd bs=1 count=20000", "s"),
)
SEVERAL: Final = (
    Metric("fork_exec_2", "50 × fork and exec, 2 vCPUs", "s", ratio=1.2, against="fork_exec"),
)
DISK: Final = (
    Metric("disk_read", "disk, 1 MiB reads one after the other", "us/MiB", ratio=1.0),
    Metric("disk_write", "disk, 1 MiB writes one after the other", "us/MiB", ratio=1.0),
    Metric("disk_random", "disk, 4 KiB read at random, 16 at a time", "us", ratio=1.0),
)
ATTACH: Final = (Metric("block_attach", "block-attach to a usable disk", "s", limit=0.3),)
IDLE: Final = (
    Metric("idle_cpu", "an idle guest", "% of a core", limit=1.0),
    Metric("resident", "resident memory", "MiB"),
    Metric("proportional", "the same, shared pages in parts", "MiB"),
)
HYPERCALLS: Final = (
    Metric("mmu_update", "mmu_update of one entry", "us", limit=0.3),
    Metric("grant", "a granted page, begin and end", "us", limit=0.2),
)
COMMANDS: Final = (
    Metric("xl_list", "xl list", "s", limit=0.25),
    Metric("xl_create_n", "xl create -n", "s"),
    Metric("xend_resident", "resident memory of xend", "MiB"),
)
METRICS: Final = {
    m.name: m for m in (*BOOT, *SECTIONS, *SEVERAL, *DISK, *ATTACH, *HYPERCALLS, *IDLE, *COMMANDS)
}
