"""python -m bench.profile: where the time of one boot goes.

By default with perf, which sees translated code, libunicorn, Python and the host's kernel; with
--python by Python's own profiler, which sees Python functions (and slows them).
"""

from __future__ import annotations

import argparse
import os
import pstats
import subprocess
import sys
import tempfile
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

from bench.console import GuestFailure
from bench.image import PROGRAM, BenchImage, build_image
from bench.measure import BOOT_S, SECTION_S
from bench.metrics import SECTIONS
from bench.peers import PyxenPeer, end_process, usual_environment
from bench.samples import SAMPLES_PER_SECOND, TRANSLATED, Sample, read_samples, record_command
from pyxen.errors import UserError
from pyxen.image.demo import PROMPT
from pyxen.paths import connect_unix

MARKS = (b"Linux version", b"Freeing SMP alternatives", b"as init process", PROMPT.encode())
XEND_S = 10.0


def main() -> int:
    """Boot once and print a profile."""
    parser = argparse.ArgumentParser(prog="bench.profile", description=__doc__)
    parser.add_argument("--python", action="store_true", help="Python's functions only")
    parser.add_argument("--no-native", action="store_true", help="PYXEN_NATIVE=0")
    parser.add_argument("--sections", action="store_true", help="run the guest's program as well")
    parser.add_argument("--top", type=int, default=30, help="functions to list (30)")
    parser.add_argument("--cmdline", help="of the guest; the demo's by default")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory(prefix="pyxen-profile-") as directory:
            image = build_image(Path(directory))
            (_python if options.python else _perf)(options, image, Path(directory))
    except UserError as error:
        print(f"bench.profile: {error.message}\n    {error.hint}", file=sys.stderr)
        return 1
    return 0


def _python(options: argparse.Namespace, image: BenchImage, directory: Path) -> None:
    stats = directory / "stats"
    hook = Path(__file__).parent / "sitehook"
    os.environ["PYXEN_BENCH_PROFILE"] = str(stats)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(hook), os.environ.get("PYTHONPATH", "")])
    peer = _peer(options, image, directory)
    try:
        _boot(peer, sections=options.sections)
    finally:
        peer.close()
    pstats.Stats(str(stats)).sort_stats("tottime").print_stats(options.top)


def _peer(options: argparse.Namespace, image: BenchImage, directory: Path) -> PyxenPeer:
    native = not options.no_native
    return PyxenPeer(image, directory / "home", native=native, cmdline=options.cmdline)


def _boot(peer: PyxenPeer, *, sections: bool) -> tuple[int, list[tuple[str, float]]]:
    """The domain's process, and when what was reached."""
    guest = peer.start()
    console = guest.console
    try:
        console.wait_for(PROMPT.encode(), BOOT_S)
        pid = guest.pid()
        found = [(mark.decode(), console.arrival_of(mark)) for mark in MARKS]
        marks = [("xl create", guest.begun), *((name, at) for name, at in found if at is not None)]
        if sections:
            console.type(PROGRAM)
            for section in SECTIONS:
                for word, what in (("begin", "calibration"), ("result", section.name)):
                    text = f"@{word} {section.name}"
                    marks.append((what, console.wait_for(text.encode(), SECTION_S)))
    except GuestFailure as failure:
        raise UserError(str(failure), peer.complaints()) from failure
    finally:
        guest.close()
    return pid, marks


def _perf(options: argparse.Namespace, image: BenchImage, directory: Path) -> None:
    peer = _peer(options, image, directory)
    recording = directory / "perf.data"
    # xend in the foreground below perf, which follows its children: the domain is one.
    command = [sys.executable, "-P", "-m", "pyxen.xend"]
    words = ["--state", str(peer.paths.state), "--run", str(peer.paths.run)]
    environment = {**usual_environment(), "PYXEN_NATIVE": str(int(not options.no_native))}
    perf = subprocess.Popen([*record_command(recording), *command, *words], env=environment)
    try:
        _await_xend(peer)
        pid, marks = _boot(peer, sections=options.sections)
    finally:
        xend = peer.xend_pid()
        if xend is not None:
            end_process(xend)
        perf.wait()
    _print(list(read_samples(recording)), pid, marks, options.top)


def _await_xend(peer: PyxenPeer) -> None:
    deadline = time.monotonic() + XEND_S
    while True:
        try:
            connect_unix(peer.paths.xend_socket).close()
            return
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(f"xend does not answer: {error}") from error
            time.sleep(0.02)


def _print(samples: list[Sample], pid: int, marks: list[tuple[str, float]], top: int) -> None:
    for (_, begin), (name, end) in pairwise(marks):
        if name != "calibration":
            phase = [s for s in samples if begin <= s.time < end]
            ours = [s for s in phase if s.pid == pid]
            others = _seconds(len(phase) - len(ours))
            print(f"\n{name}: +{end - begin:.3f} s, of others {others}; of the domain:")
            _table(Counter(s.kind for s in ours), len(ours), 8)
            _table(_functions(ours), len(ours), 8)
    begin, end = marks[0][1], marks[-1][1]
    ours = [s for s in samples if s.pid == pid and begin <= s.time < end]
    print(f"\nall of it: {_seconds(len(ours))}")
    _table(_functions(ours), len(ours), top)


def _functions(samples: list[Sample]) -> Counter[str]:
    """Translated code has no names, and its share is shown already."""
    return Counter(f"{s.kind}: {s.symbol}" for s in samples if s.kind != TRANSLATED)


def _table(counter: Counter[str], whole: int, top: int) -> None:
    for what, count in counter.most_common(top):
        print(f"  {_seconds(count)} {100 * count / whole:5.1f} %  {what}")


def _seconds(samples: int) -> str:
    return f"{samples / SAMPLES_PER_SECOND:.3f} s"


if __name__ == "__main__":
    sys.exit(main())
