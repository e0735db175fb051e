"""Raw images by themselves, and the threads that work for them."""

from __future__ import annotations

import ctypes
import os
import select
import subprocess
import threading
from collections.abc import Callable, Iterator
from errno import EIO, ENOSPC
from pathlib import Path

import pytest
from front_end import FrontEnd

from pyxen.abi.io.blkif import BLKIF_OP_READ, BLKIF_OP_WRITE
from pyxen.backend.blk.storage.base import Kind, Operation
from pyxen.backend.blk.storage.raw import RawStorage, _rest, open_raw
from pyxen.backend.blk.storage.workers import Completions, Workers
from pyxen.errors import UserError


def do(
    storage: RawStorage, workers: Workers, kind: Kind, offset: int = 0, *buffers: memoryview
) -> int:
    """Carry out one operation; 0 or an errno."""
    ended: list[int] = []
    length = sum(len(buffer) for buffer in buffers)
    storage.submit(Operation(kind, offset, length, buffers, ended.append))
    while not ended:
        workers.completions.wait()
    return ended[0]


# --- opening ----------------------------------------------------------------------------------


def test_what_cannot_be_opened(tmp_path: Path, workers: Workers) -> None:
    os.mkfifo(tmp_path / "pipe")
    before = os.listdir("/proc/self/fd")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(UserError) as info:
            open_raw(path, workers)
        assert str(path) in info.value.message
        assert info.value.hint
    assert os.listdir("/proc/self/fd") == before


def test_sizes(tmp_path: Path, workers: Workers) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(1000))
    storage = open_raw(path, workers)
    assert (storage.size, storage.sector_size) == (512, 512)
    assert storage.physical_sector_size >= 512
    os.truncate(path, 1 << 40)
    assert storage.size == 1 << 40
    storage.close()


def test_read_only(image: Path, workers: Workers) -> None:
    storage = open_raw(image, workers, read_only=True)
    assert storage.read_only
    assert storage.discard_granularity == 0
    assert do(storage, workers, Kind.WRITE, 0, memoryview(bytes(512))) != 0
    assert do(storage, workers, Kind.FLUSH) == 0
    storage.close()


# --- data -------------------------------------------------------------------------------------


def test_what_is_not_in_memory_is_read_as_well(
    storage: RawStorage, workers: Workers, image: Path
) -> None:
    whole = image.read_bytes()
    os.fsync(storage._fd)
    for _ in range(3):
        os.posix_fadvise(storage._fd, 8192, 8192, os.POSIX_FADV_DONTNEED)
        data = bytearray(32768)
        view = memoryview(data)
        parts = (view[:100], view[100:9000], view[9000:])
        assert do(storage, workers, Kind.READ, 0, *parts) == 0
        assert data == whole[:32768]


@pytest.mark.parametrize("moved", range(10))
def test_what_is_left(moved: int) -> None:
    parts = [memoryview(b"abc"), memoryview(b"d"), memoryview(b"efghi")]
    assert b"".join(_rest(parts, moved)) == b"abcdefghi"[moved:]


def test_direct(
    connect: Callable[..., FrontEnd], settle: Callable[[FrontEnd], None], image: Path,
    workers: Workers,
) -> None:  # fmt: skip
    try:
        storage = open_raw(image, workers, direct=True)
    except UserError as error:
        pytest.skip(error.message)
    assert storage.sector_size in (512, 4096)
    front = connect(storage)
    for page in range(3):
        front.fill(page, os.urandom(4096))
    segments = [(0, 0, 7), (2, 0, 7), (1, 0, 7)]
    front.send(front.transfer(BLKIF_OP_WRITE, 8, segments))
    settle(front)
    written = image.read_bytes()[4096:16384]
    assert written == front.data(0) + front.data(2) + front.data(1)
    front.send(front.transfer(BLKIF_OP_READ, 8, [(page, 0, 7) for page in (10, 20, 30)]))
    settle(front)
    assert front.data(10) + front.data(20) + front.data(30) == written
    assert front.statuses() == [0, 0]
    storage.close()


# --- failures ---------------------------------------------------------------------------------


def test_no_space(workers: Workers) -> None:
    storage = RawStorage(os.open("/dev/full", os.O_RDWR), workers, read_only=False, direct=False)
    assert storage.discard_granularity == 0
    assert do(storage, workers, Kind.WRITE, 0, memoryview(bytes(4096))) == ENOSPC
    assert do(storage, workers, Kind.FLUSH) == 0
    storage.close()


def test_the_end_of_a_file(storage: RawStorage, workers: Workers, image: Path) -> None:
    os.truncate(image, 5000)
    data = bytearray(8192)
    assert do(storage, workers, Kind.READ, 0, memoryview(data)) == EIO
    assert do(storage, workers, Kind.READ, 8192, memoryview(data)) == EIO


def test_a_flush_that_failed_is_not_forgotten(
    image: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = open_raw(image, workers)

    def fail(fd: int) -> None:
        raise OSError(ENOSPC, "no space")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", fail)
        assert do(storage, workers, Kind.FLUSH) == ENOSPC
    assert do(storage, workers, Kind.FLUSH) == EIO
    with pytest.raises(OSError, match="Input/output error"):
        storage.close()
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(storage._fd)


def test_close_waits(image: Path, workers: Workers) -> None:
    storage = open_raw(image, workers)
    os.posix_fadvise(storage._fd, 0, 0, os.POSIX_FADV_DONTNEED)
    ended: list[int] = []
    data = memoryview(bytearray(1 << 20))
    for n in range(8):
        part = data[n << 17 : (n + 1) << 17]
        storage.submit(Operation(Kind.READ, n << 17, 1 << 17, [part], ended.append))
        storage.submit(Operation(Kind.FLUSH, 0, 0, (), ended.append))
    storage.close()
    assert ended == [0] * 16
    assert data == image.read_bytes()[: 1 << 20]


# --- a block device ---------------------------------------------------------------------------


@pytest.fixture
def loop(image: Path) -> Iterator[Path]:
    """A block device with the image behind it."""
    made = subprocess.run(["losetup", "-f", "--show", image], capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"no loop device: {made.stderr.strip()}")
    yield Path(made.stdout.strip())
    subprocess.run(["losetup", "-d", made.stdout.strip()], check=True)


@pytest.mark.parametrize("direct", [False, True])
def test_a_block_device(loop: Path, image: Path, workers: Workers, direct: bool) -> None:
    storage = open_raw(loop, workers, direct=direct)
    assert storage.size == 4 << 20
    assert storage.sector_size == 512
    with memoryview(bytearray(8192)) as view:
        # Aligned, as guest memory is.
        start = -_address(view) % 4096
        page = view[start : start + 4096]
        assert do(storage, workers, Kind.READ, 8192, page) == 0
        assert page == image.read_bytes()[8192:12288]
        page[:] = b"z" * 4096
        assert do(storage, workers, Kind.WRITE, 0, page) == 0
        page.release()
    assert do(storage, workers, Kind.FLUSH) == 0
    assert image.read_bytes()[:4096] == b"z" * 4096
    if storage.discard_granularity:
        ended: list[int] = []
        storage.submit(Operation(Kind.DISCARD, 1 << 20, 1 << 20, (), ended.append))
        while not ended:
            workers.completions.wait()
        assert ended == [0]
        assert image.read_bytes()[1 << 20 : 2 << 20] == bytes(1 << 20)
    storage.close()


def _address(view: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


# --- workers ----------------------------------------------------------------------------------


def test_work_is_done_elsewhere_and_its_end_told_here(workers: Workers) -> None:
    threads: list[int] = []
    ended: list[tuple[int, int]] = []

    def work() -> int:
        threads.append(threading.get_ident())
        return 7

    for _ in range(20):
        workers.submit(work, lambda errno: ended.append((errno, threading.get_ident())))
    while len(ended) < 20:
        workers.completions.wait()
    assert ended == [(7, threading.get_ident())] * 20
    assert threading.get_ident() not in threads
    assert len(set(threads)) <= 4


def test_errors_of_work(workers: Workers) -> None:
    def refuse() -> int:
        raise OSError(ENOSPC, "full")

    def bug() -> int:
        raise ZeroDivisionError("a bug")

    ended: list[int] = []
    workers.submit(refuse, ended.append)
    while not ended:
        workers.completions.wait()
    assert ended == [ENOSPC]
    workers.submit(bug, ended.append)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        while True:
            workers.completions.wait()


def test_a_drain_ends(workers: Workers) -> None:
    completions: Completions = workers.completions
    count = 0

    def again() -> None:
        nonlocal count
        count += 1
        completions.post(again)

    completions.post(again)
    completions.drain()
    assert count == 2
    completions.drain()
    assert count == 4, "it is told that there is more"


def test_who_drains_is_not_woken_for_what_it_posts(workers: Workers) -> None:
    completions, seen = workers.completions, []
    completions.post(lambda: completions.post(lambda: seen.append(1)))
    completions.drain()
    assert seen == [1]
    assert not select.select([completions], [], [], 0)[0]


def test_what_is_posted_before_an_exception_is_not_lost(workers: Workers) -> None:
    def bug() -> None:
        raise ZeroDivisionError

    seen: list[int] = []
    workers.completions.post(bug)
    workers.completions.post(lambda: seen.append(1))
    with pytest.raises(ZeroDivisionError):
        workers.completions.drain()
    workers.completions.drain()
    assert seen == [1]
