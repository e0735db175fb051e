"""`make integrity INTEGRITY="--seconds 600 --seed 1"`: random work on a disk, against a model.

Every round attaches the disk to a running guest, lets four processes write, read, flush and
discard, detaches it, and compares every block of the file on the host with the model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from pyxen.image.demo import build_demo
from tests.integrity.run import IntegrityRun


def main() -> int:
    """0: nothing differed."""
    parser = argparse.ArgumentParser(prog="integrity", description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=int(time.time()) % 100_000)
    parser.add_argument("--mib", type=int, default=64, help="size of the disk (64)")
    parser.add_argument("--operations", type=int, default=300, help="of each process a round (300)")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="pyxen-integrity-") as directory:
        demo = build_demo(Path(directory), say=lambda line: None)
        run = IntegrityRun(Path(directory), demo, options.mib << 20)
        try:
            rounds = run.repeat(options.seed, options.operations, options.seconds)
        finally:
            run.close()
    print(f"{rounds} rounds, {rounds * options.operations * 4} operations, no difference")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
