"""Every format: what a guest reads, writes, flushes and discards is what qemu-img finds."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from pyxen.backend.blk.storage.base import Kind
from tests.formats.conftest import FORMATS, SIZE, World, content, create, qemu_img

DISCARDING = ("raw", "qcow2")
"""Formats that have holes, which read as zeros."""


@pytest.mark.parametrize("image_format", FORMATS)
def test_many_operations_at_once(world: World, tmp_path: Path, image_format: str) -> None:
    chance = random.Random(image_format)
    path = create(tmp_path / "disk", image_format)
    storage = world.open(path, image_format)
    assert storage.size >= SIZE
    model = bytearray(storage.size)
    for _ in range(6):
        results = []
        for piece in chance.sample(range(SIZE >> 16), 40):
            first = (piece << 16) + 512 * chance.randrange(64)
            data = chance.randbytes(512 * chance.randrange(1, 64))
            model[first : first + len(data)] = data
            cut = 512 * chance.randrange(len(data) // 512)
            parts = [memoryview(bytearray(part)) for part in (data[:cut], data[cut:]) if part]
            results.append(world.begin(storage, Kind.WRITE, first, len(data), parts))
        world.wait(lambda results=results: all(results))
        assert all(result == [0] for result in results)
        assert world.flush(storage) == 0
    head, tail = bytearray(4096), bytearray(8192)
    parts = [memoryview(head), memoryview(tail)]
    assert world.do(storage, Kind.READ, 512, 12288, parts) == 0
    assert head + tail == model[512 : 512 + 12288]
    assert world.read(storage, 0, storage.size) == model
    world.close(storage)
    assert content(path, image_format) == model


@pytest.mark.parametrize("image_format", FORMATS)
def test_close_flushes_and_another_open_reads(
    world: World, tmp_path: Path, image_format: str
) -> None:
    path = create(tmp_path / "disk, with=commas", image_format)
    storage = world.open(path, image_format)
    data = random.Random(7).randbytes(300 * 512)
    result = world.begin(storage, Kind.WRITE, 51200, len(data), [memoryview(bytearray(data))])
    world.close(storage)
    assert result == [0]
    storage = world.open(path, image_format, read_only=True)
    assert storage.read_only
    assert world.read(storage, 51200, len(data)) == data
    assert storage.discard_granularity == 0
    assert world.write(storage, 0, bytes(512)) != 0


@pytest.mark.parametrize("image_format", FORMATS)
def test_discard(world: World, tmp_path: Path, image_format: str) -> None:
    path = create(tmp_path / "disk", image_format)
    storage = world.open(path, image_format)
    step = 1 << 20
    assert world.write(storage, 0, b"\xa5" * 3 * step) == 0
    assert world.flush(storage) == 0
    before = path.stat().st_blocks
    assert bool(storage.discard_granularity) == (image_format in DISCARDING)
    if image_format in DISCARDING:
        assert step % storage.discard_granularity == 0
        assert world.do(storage, Kind.DISCARD, step, step) == 0
        assert world.flush(storage) == 0
        assert world.read(storage, step, step) == bytes(step)
        # Half of it: a table of qcow2 is written, too.
        assert path.stat().st_blocks <= before - step // 512 // 2
    assert world.read(storage, 0, step) == b"\xa5" * step
    assert world.read(storage, 2 * step, step) == b"\xa5" * step


def test_no_discard(world: World, tmp_path: Path) -> None:
    storage = world.open(create(tmp_path / "disk", "qcow2"), "qcow2", discard=False)
    assert storage.discard_granularity == 0


def test_direct(world: World, tmp_path: Path) -> None:
    path = create(tmp_path / "disk", "qcow2")
    storage = world.open(path, "qcow2", direct=True)
    data = random.Random(1).randbytes(4096 * 5)
    assert world.write(storage, 4096, data) == 0
    assert world.read(storage, 4096, len(data)) == data


def test_discard_granularity_is_the_cluster(world: World, tmp_path: Path) -> None:
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "cluster_size=32k", path, "8M")
    assert world.open(path, "qcow2").discard_granularity == 32768


def test_longer_than_one_command(world: World, tmp_path: Path) -> None:
    storage = world.open(create(tmp_path / "disk", "qcow2", 80 << 20), "qcow2")
    data = random.Random(3).randbytes(1 << 20) * 70
    assert world.write(storage, 512, data) == 0
    assert world.read(storage, 512, len(data)) == data


def test_backing_file(world: World, tmp_path: Path) -> None:
    base = create(tmp_path / "base", "raw")
    base.write_bytes(b"base" * (SIZE // 4))
    path = tmp_path / "disk"
    qemu_img("create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", path)
    storage = world.open(path, "qcow2")
    assert world.write(storage, 512, b"over" * 128) == 0
    assert world.read(storage, 0, 1536) == b"base" * 128 + b"over" * 128 + b"base" * 128
    world.close(storage)
    assert base.read_bytes() == b"base" * (SIZE // 4)
