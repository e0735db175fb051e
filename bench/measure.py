"""One boot of one peer, measured; and what is measured once: idleness, xl itself."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from bench.console import GuestFailure
from bench.facts import load
from bench.grants import grant_us
from bench.image import PROGRAM
from bench.metrics import DISK, SECTIONS, Metric
from bench.mmu import mmu_update_us
from bench.peers import DOMAIN, Guest, Peer, PyxenPeer
from bench.processes import cpu_seconds, proportional_mib, resident_mib
from pyxen.image.demo import PROMPT

BOOT_S: Final = 60.0
SECTION_S: Final = 60.0
SETTLE_S: Final = 1.0
"""Before a boot: what the last guest left behind is cleared away, xend's next process is ready."""
IDLE_SETTLE_S: Final = 5.0
LONG_S: Final = 0.2
"""A section long enough to compare the guest's clock with the host's."""
_BANNER: Final = b"Linux version"
_USER_SPACE: Final = b"as init process"


@dataclass(slots=True)
class Run:
    """The numbers of one guest, and how far the guest's clock was from the host's.

    load: the machine's load average when the guest was started.
    clock_error: the largest difference over the long sections, as a part of the guest's time.
    """

    peer: str
    values: dict[str, float] = field(default_factory=dict)
    clock_error: float = 0.0
    failure: str = ""
    load: float = field(default_factory=load)


def measure_guest(peer: Peer) -> Run:
    """Boot, run every section, end the guest. A guest that fails is a result, not an error."""
    run = Run(peer.name)
    with _running(peer, run) as guest:
        run.values.update(_boot(guest))
        guest.console.type(PROGRAM)
        _sections(guest, run, SECTIONS)
    return run


def measure_disk(peer: Peer) -> Run:
    """Reads and writes on a disk that is a raw file in the host's page cache."""
    run = Run(peer.name)
    with _running(peer, run, disk=True) as guest:
        console = guest.console
        console.wait_for(PROMPT.encode(), BOOT_S)
        loads = "".join(f"modprobe {name}; " for name in peer.disk_modules.split())
        device = peer.disk_device
        console.type(f"{loads}{PROGRAM} await {device}; {PROGRAM} disk {device}")
        _sections(guest, run, DISK)
    return run


def measure_attach(peer: PyxenPeer) -> Run:
    """From `xl block-attach` to a program in the guest that can open the disk."""
    run = Run(peer.name)
    with _running(peer, run) as guest:
        console = guest.console
        console.wait_for(PROMPT.encode(), BOOT_S)
        console.type(f"{PROGRAM} await /dev/xvdb")
        console.wait_for(b"@waiting", SECTION_S)
        begin = time.monotonic()
        peer.xl("block-attach", DOMAIN, f"{peer.disk},raw,xvdb,rw")
        run.values["block_attach"] = console.wait_for(b"@there", SECTION_S) - begin
    return run


def measure_two_vcpus(peer: PyxenPeer) -> Run:
    """Fork and exec again, in a guest with two vCPUs."""
    run = Run(peer.name)
    with _running(peer, run, vcpus=2) as guest:
        console = guest.console
        console.wait_for(PROMPT.encode(), BOOT_S)
        console.type(f"{PROGRAM} fork_exec")
        console.wait_for(b"@result fork_exec ", SECTION_S)
        run.values["fork_exec_2"] = float(console.rest_of_line(SECTION_S).split()[0])
    return run


def measure_cold(peer: PyxenPeer) -> Run:
    """From `xl create` to the guest's first byte when xend has to be started too."""
    run = Run(peer.name)
    with _running(peer, run, cold=True) as guest:
        guest.console.wait_for(b"\n", BOOT_S)
        run.values["first_byte_cold"] = guest.console.first_byte - guest.begun
    return run


def measure_idle(peer: Peer, seconds: float) -> Run:
    """CPU time and memory of a guest that waits at its prompt; for pyxen also xl's own times."""
    run = Run(peer.name)
    with _running(peer, run) as guest:
        guest.console.wait_for(PROMPT.encode(), BOOT_S)
        time.sleep(IDLE_SETTLE_S)
        pid = guest.pid()
        begin, cpu = time.monotonic(), cpu_seconds(pid)
        time.sleep(seconds)
        used, passed = cpu_seconds(pid) - cpu, time.monotonic() - begin
        run.values["idle_cpu"] = 100 * used / passed
        run.values["resident"] = resident_mib(pid)
        run.values["proportional"] = proportional_mib(pid)
        if isinstance(peer, PyxenPeer):
            run.values.update(_commands(peer))
    return run


@contextmanager
def _running(
    peer: Peer, run: Run, *, vcpus: int = 1, disk: bool = False, cold: bool = False
) -> Iterator[Guest]:
    """A guest for a while; its failure goes into `run`. cold: nothing of the peer runs before."""
    if cold:
        peer.close()
    else:
        peer.prepare()
    time.sleep(SETTLE_S)
    try:
        guest = peer.start(vcpus, disk=disk)
        try:
            yield guest
        finally:
            guest.close()
    except GuestFailure as failure:
        run.failure = str(failure)


def _boot(guest: Guest) -> dict[str, float]:
    console = guest.console
    prompt = console.wait_for(PROMPT.encode(), BOOT_S)
    times = {
        "first_byte": console.first_byte,
        "kernel_banner": console.arrival_of(_BANNER),
        "user_space": console.arrival_of(_USER_SPACE),
        "prompt": prompt,
    }
    values = {name: when - guest.begun for name, when in times.items() if when is not None}
    return {**values, "prompt_cpu": cpu_seconds(guest.pid())}


def _sections(guest: Guest, run: Run, sections: Sequence[Metric]) -> None:
    console = guest.console
    for section in sections:
        begin = console.wait_for(f"@begin {section.name}".encode(), SECTION_S)
        console.wait_for(f"@result {section.name} ".encode(), SECTION_S)
        value, unit, elapsed_ns = console.rest_of_line(SECTION_S).split()
        if unit.decode() != section.unit:
            raise GuestFailure(f"{section.name} comes in {unit.decode()}, not in {section.unit}")
        run.values[section.name] = float(value)
        inside, outside = int(elapsed_ns) / 1e9, console.found_at - begin
        if inside >= LONG_S:
            run.clock_error = max(run.clock_error, abs(inside - outside) / inside)
    console.wait_for(b"@end", SECTION_S)


def measure_hypercalls(peer: PyxenPeer) -> Run:
    """Hypercalls of a guest without Linux, and uses of its pages, in this process."""
    native = peer.name == "pyxen"
    return Run(
        peer.name,
        {
            "mmu_update": mmu_update_us(native=native, count=10**6 if native else 5000),
            "grant": grant_us(native=native, requests=1000 if native else 20),
        },
    )


def _commands(peer: PyxenPeer) -> dict[str, float]:
    xend = peer.xend_pid()
    values = {
        "xl_list": _median_time(lambda: peer.xl("list")),
        "xl_create_n": _median_time(lambda: peer.xl("create", "-n", str(peer.config))),
    }
    return values if xend is None else {**values, "xend_resident": resident_mib(xend)}


def _median_time(operation: Callable[[], object], times: int = 7) -> float:
    taken = []
    for _ in range(times):
        begin = time.monotonic()
        operation()
        taken.append(time.monotonic() - begin)
    return sorted(taken)[times // 2]


def measure_python() -> float:
    """What a Python that does nothing takes, in seconds: the floor of every xl command."""
    return _median_time(lambda: subprocess.run([sys.executable, "-c", ""], check=True))
