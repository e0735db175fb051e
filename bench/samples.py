"""Where a process spends its time, by perf: who (thread, library, function) and when.

Only software clocks are used: virtual machines have no cycle counter.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError

SAMPLES_PER_SECOND: Final = 2000
TRANSLATED: Final = "translated code"
_LINE: Final = re.compile(
    r"\s*(?P<pid>\d+)/(?P<tid>\d+)\s+(?P<time>[\d.]+):\s+(?P<ip>[0-9a-f]+)\s+(?P<symbol>.*?)"
    r"\s+\((?P<dso>[^()]*(?:\(deleted\))?)\)\s*$"
)


@dataclass(frozen=True, slots=True)
class Sample:
    """One tick of the clock in a thread; time in seconds of time.monotonic()."""

    pid: int
    tid: int
    time: float
    kind: str
    symbol: str


def record_command(output: Path) -> list[str]:
    """The words to put before a command, to record it and its children. UserError without perf."""
    perf = shutil.which("perf")
    if perf is None:
        raise UserError("there is no perf", "apt-get install linux-perf")
    return [
        *(perf, "record", "-q", "-e", "cpu-clock", "-F", str(SAMPLES_PER_SECOND)),
        *("-k", "CLOCK_MONOTONIC", "-o", str(output), "--"),
    ]


def read_samples(recording: Path) -> Iterator[Sample]:
    """What was recorded."""
    command = ["perf", "script", "-i", str(recording), "-F", "pid,tid,time,ip,sym,dso"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"perf script: {done.stderr.strip()}")
    for line in done.stdout.splitlines():
        found = _LINE.match(line)
        if found:
            kind = _kind(found["dso"])
            symbol = found["symbol"]
            if symbol == "[unknown]":
                symbol = f"static function near {found['ip'][:-2]}.."
            yield Sample(int(found["pid"]), int(found["tid"]), float(found["time"]), kind, symbol)


def _kind(dso: str) -> str:
    """The owner of the code that ran."""
    name = dso.rpartition("/")[2]
    if dso == "[kernel.kallsyms]" or dso.startswith(("[guest", "[kernel")):
        return "host kernel"
    if "unicorn/_hot" in dso:
        return "native hot path"
    if name.startswith("libunicorn"):
        return "libunicorn"
    if name.startswith(("python", "libpython")) or "/lib-dynload/" in dso:
        return "Python"
    if name.startswith(("libc.", "libc-", "libm.", "ld-linux", "[vdso", "libffi")):
        return "C library"
    if name == "[unknown]" or name.startswith(("perf-", "anon", "[heap")):
        return TRANSLATED
    return name
