"""What /proc tells of a process. Source: proc(5)."""

from __future__ import annotations

import os
from pathlib import Path

TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")
_UTIME, _STIME = 11, 12
"""Among the fields of /proc/pid/stat that follow the name."""


def cpu_seconds(pid: int) -> float:
    """User and system time of all threads, in seconds; the clock's tick is 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[_UTIME]) + int(fields[_STIME])) / TICKS_PER_SECOND


def resident_mib(pid: int) -> float:
    """Resident memory in MiB, the guest's memory included."""
    return _kib(Path(f"/proc/{pid}/status"), "VmRSS:") / 1024


def proportional_mib(pid: int) -> float:
    """As resident_mib, but a page that several processes share counts in parts."""
    return _kib(Path(f"/proc/{pid}/smaps_rollup"), "Pss:") / 1024


def _kib(path: Path, key: str) -> int:
    for line in path.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1])
    raise ValueError(f"{path} has no {key}")
