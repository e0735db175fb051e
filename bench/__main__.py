"""python -m bench: boot the same guest on pyxen and on QEMU, in turns, and compare."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path

from bench import facts, report
from bench.image import MEMORY_MIB, build_image
from bench.measure import (
    Run,
    measure_attach,
    measure_cold,
    measure_disk,
    measure_guest,
    measure_hypercalls,
    measure_idle,
    measure_python,
    measure_two_vcpus,
)
from bench.peers import Peer, PyxenPeer, QemuPeer
from pyxen.errors import UserError

PEERS = ("qemu", "pyxen", "pyxen-python")
BASE = "qemu"
BUSY = 2.0
"""A load that is not from the guest and what shows its console."""
CLOCK_ERROR = 0.1
"""Above this the guest's own times are not to be trusted."""


def main() -> int:
    """Run the measurements that the command line asks for."""
    options = _options()
    try:
        with tempfile.TemporaryDirectory(prefix="pyxen-bench-") as directory:
            return _measure(options, Path(directory))
    except UserError as error:
        print(f"bench: {error.message}", file=sys.stderr)
        if error.hint:
            print(f"    {error.hint}", file=sys.stderr)
        return 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("--runs", type=int, default=5, help="boots of each peer (5)")
    parser.add_argument(
        "--peers", default=",".join(PEERS), help=f"which of {', '.join(PEERS)}, with commas"
    )
    parser.add_argument(
        "--idle", type=float, default=20, help="seconds to watch an idle guest; 0: do not (20)"
    )
    parser.add_argument("--no-disk", action="store_true", help="leave disks out")
    parser.add_argument("--no-cold", action="store_true", help="never start xend anew")
    parser.add_argument("--cmdline", help="of pyxen's guests; the demo's by default")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results")
    parser.add_argument("--no-store", action="store_true", help="print only")
    options = parser.parse_args()
    options.peers = options.peers.split(",")
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"no such peer: {', '.join(unknown)}")
    return options


def _measure(options: argparse.Namespace, directory: Path) -> int:
    date = datetime.now(UTC)
    image = build_image(directory)
    peers: list[Peer] = []
    for name in options.peers:
        if name == "qemu":
            peers.append(QemuPeer(image))
        else:
            native = name == "pyxen"
            home = directory / name
            peers.append(PyxenPeer(image, home, native=native, cmdline=options.cmdline))
    try:
        runs = _rounds(peers, options)
        known: dict[str, object] = {
            "commit": facts.source_commit(),
            "machine": facts.machine_facts(),
            "guest": {**image.facts(), "memory_mib": MEMORY_MIB, "vcpus": 1},
            "cmdline": image.cmdline if options.cmdline is None else options.cmdline,
            "peers": {peer.name: peer.version() for peer in peers},
            "python_s": measure_python(),
        }
    finally:
        for peer in peers:
            peer.close()
    summary = report.summarise(runs, BASE)
    print(f"\n{report.table(summary, options.peers, BASE)}\n")
    for key, value in known.items():
        print(f"{key}: {value}")
    if (worst := max((run.load for run in runs), default=0.0)) > BUSY:
        print(f"THE MACHINE WAS BUSY (load {worst:.1f}): do not trust wall times, nor their ratios")
    if not options.no_store:
        path = report.store(options.results, f"{date:%Y-%m-%dT%H%M%SZ}", known, runs, summary)
        print(f"stored in {path}")
    return 1 if any(run.failure for run in runs) else 0


def _rounds(peers: list[Peer], options: argparse.Namespace) -> list[Run]:
    """Every peer in turn, each time another one first: what disturbs the machine hits all alike."""
    runs = []
    for n in range(options.runs):
        first = n % len(peers)
        for peer in peers[first:] + peers[:first]:
            runs.append(_told(f"{n + 1}/{options.runs}", measure_guest(peer)))
            if not options.no_disk:
                runs.append(_told("disk", measure_disk(peer)))
            if peer.name == "pyxen" and isinstance(peer, PyxenPeer):
                if not options.no_disk:
                    runs.append(_told("attach", measure_attach(peer)))
                runs.append(_told("2 vCPUs", measure_two_vcpus(peer)))
                if not options.no_cold:
                    runs.append(_told("cold", measure_cold(peer)))
        for peer in peers:
            if isinstance(peer, PyxenPeer):
                runs.append(_told("hypercalls", measure_hypercalls(peer)))
    if options.idle:
        runs += [_told("idle", measure_idle(peer, options.idle)) for peer in peers]
    return runs


def _told(what: str, run: Run) -> Run:
    values = " ".join(f"{name}={value:.3f}" for name, value in run.values.items())
    clock = time.strftime("%H:%M:%S")
    print(f"{clock} {what} {run.peer} (load {run.load:.1f}): {values}", flush=True)
    if run.clock_error > CLOCK_ERROR:
        print(f"  the guest's clock is off by {100 * run.clock_error:.0f} %")
    if run.failure:
        print(f"  FAILED: {run.failure}")
    return run


if __name__ == "__main__":
    sys.exit(main())
