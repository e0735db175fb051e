"""What `make integrity` does for as long as it is told: three rounds of it."""

from __future__ import annotations

from pathlib import Path

from pyxen.image.demo import DemoImage
from tests.integrity.run import IntegrityRun


def test_what_the_guest_wrote_is_on_the_host(tmp_path: Path, demo: DemoImage) -> None:
    run = IntegrityRun(tmp_path, demo, 16 << 20)
    try:
        for seed in (1, 2, 3):
            run.round(seed, operations=100)
    finally:
        run.close()
