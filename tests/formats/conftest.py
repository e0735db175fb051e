"""What the tests of image formats share: the real reactor, workers, and QEMU's own tools.

Debian's packages qemu-utils, qemu-system-common and libnbd0 are installed by scripts/install.sh.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from pyxen.backend.blk.storage.base import Kind, Operation, Storage
from pyxen.backend.blk.storage.open import Host, Image, open_storage
from pyxen.backend.blk.storage.workers import Completions, Workers
from pyxen.domain.reactor import Reactor
from pyxen.paths import Paths

TOOLS = ("qemu-img", "qemu-io", "qemu-nbd", "qemu-storage-daemon")
FORMATS = ("raw", "qcow2", "qcow", "vmdk", "vhd", "vdi", "qed")
QEMU_NAMES = {"vhd": "vpc"}
SIZE = 16 << 20


@pytest.fixture(scope="session", autouse=True)
def _tools() -> None:
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    assert not missing, f"{missing}: apt install qemu-utils qemu-system-common"


def qemu_img(*arguments: str | Path) -> str:
    command = ["qemu-img", *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def create(path: Path, image_format: str, size: int = SIZE) -> Path:
    qemu_img("create", "-q", "-f", QEMU_NAMES.get(image_format, image_format), path, str(size))
    return path


def content(path: Path, image_format: str) -> bytes:
    """All of an image, as qemu-img reads it."""
    flat = path.with_suffix(".flat")
    name = QEMU_NAMES.get(image_format, image_format)
    qemu_img("convert", "-f", name, "-O", "raw", path, flat)
    data = flat.read_bytes()
    flat.unlink()
    return data


class World:
    """What surrounds a storage in a domain process."""

    def __init__(self, directory: Path) -> None:
        self.reactor = Reactor()
        self.completions = Completions()
        self.reactor.add(self.completions.fileno(), lambda events: self.completions.drain())
        self.workers = Workers(self.completions)
        self.lines: list[str] = []
        self.run_dir = directory / "run"
        self.run_dir.mkdir()
        self.state = directory / "state"
        self.host = Host(
            self.reactor,
            self.workers,
            self.run_dir,
            "xvda",
            self.lines.append,
            Paths(self.state, self.run_dir),
        )
        self.opened: list[Storage] = []

    def open(self, path: Path | str, image_format: str, **settings: bool) -> Storage:
        storage = open_storage(Image(str(path), image_format, **settings), self.host)
        self.opened.append(storage)
        return storage

    def close(self, storage: Storage) -> None:
        self.opened.remove(storage)
        storage.close()

    def end(self) -> None:
        for storage in self.opened:
            storage.close()
        self.workers.close()
        assert list(self.run_dir.iterdir()) == []

    def wait(self, until: Callable[[], bool]) -> None:
        while not until():
            self.reactor.wait(None)

    def begin(
        self,
        storage: Storage,
        kind: Kind,
        offset: int = 0,
        length: int = 0,
        buffers: Sequence[memoryview] = (),
    ) -> list[int]:
        """Submit one; the list gets its result."""
        results: list[int] = []
        storage.submit(Operation(kind, offset, length, buffers, results.append))
        return results

    def do(self, storage: Storage, kind: Kind, *what: object) -> int:
        results = self.begin(storage, kind, *what)  # type: ignore[arg-type]
        self.wait(partial(bool, results))
        return results[0]

    def write(self, storage: Storage, offset: int, data: bytes) -> int:
        return self.do(storage, Kind.WRITE, offset, len(data), [memoryview(bytearray(data))])

    def read(self, storage: Storage, offset: int, length: int) -> bytes:
        data = bytearray(length)
        assert self.do(storage, Kind.READ, offset, length, [memoryview(data)]) == 0
        return bytes(data)

    def flush(self, storage: Storage) -> int:
        return self.do(storage, Kind.FLUSH)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.end()
