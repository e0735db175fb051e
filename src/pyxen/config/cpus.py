"""Sets of host CPUs: the `cpus` and `cpus_soft` settings, `xl vcpu-pin`, `xl cpupool-*`.

Source: xl.cfg(5) "cpus": "all", or CPUs and ranges with commas, "^" to take out, "nodes:" for
all the CPUs of NUMA nodes.
"""

import os
import re
from dataclasses import dataclass

from pyxen.config.record import Bitmap
from pyxen.errors import UserError

_RANGE = re.compile(r"\s*(\d{1,20})(?:-\s*(\d{1,20}))?")


@dataclass(frozen=True)
class Host:
    """The host's CPUs: how many, and which of them each NUMA node has."""

    cpus: int
    nodes: tuple[tuple[int, ...], ...]

    @classmethod
    def detect(cls) -> "Host":
        """Return this machine's, as one NUMA node."""
        count = os.cpu_count() or 1
        return cls(count, (tuple(range(count)),))

    @property
    def map_bits(self) -> int:
        """How many CPUs libxl's maps have room for: they are whole bytes."""
        return (self.cpus + 7) // 8 * 8


@dataclass(frozen=True)
class CpuSet:
    """A set of CPUs, and which CPUs or nodes named for it the host does not have."""

    cpus: Bitmap
    absent: str = ""


def parse_cpus(spec: str, host: Host) -> CpuSet:
    """Read a set of CPUs.

    Raises: UserError (exit code 1) naming the part that cannot be read.
    """
    chosen: set[int] = set()
    absent: list[str] = []
    for part in filter(None, spec.split(",")):
        remove, word = part.startswith("^"), part.removeprefix("^")
        by_node = word.startswith(("node:", "nodes:"))
        word = word.partition(":")[2] if by_node else word
        if word == "all" and not remove:
            # As in libxl this is every bit of the map, not only the CPUs that exist today.
            chosen = set(range(host.map_bits))
            continue
        first, last = _range(word, part)
        if by_node:
            found = {cpu for node in host.nodes[first : last + 1] for cpu in node}
        else:
            found = set(range(first, min(last + 1, host.map_bits)))
        if last >= (len(host.nodes) if by_node else host.cpus) and not remove:
            absent.append(part)
        chosen = chosen - found if remove else chosen | found
    return CpuSet(sorted(chosen), ",".join(absent))


def _range(word: str, part: str) -> tuple[int, int]:
    """Return the first and the last number of "3" or "1-3"."""
    match = _RANGE.fullmatch(word)
    if match is None or (match[2] and int(match[2]) < int(match[1])):
        hint = "write CPUs and ranges as in 0-3,5,^1, or all, or nodes:0"
        raise UserError(f"{part!r} is no CPU and no range of CPUs", hint, 1)
    return int(match[1]), int(match[2] or match[1])
