"""The console's log and its pseudo terminal."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyxen.backend.console.log import TAIL_BYTES, ConsoleLog
from pyxen.backend.console.pty import Pty


@pytest.fixture
def log(tmp_path: Path) -> Iterator[ConsoleLog]:
    made = ConsoleLog(tmp_path / "console.log", limit_bytes=1000)
    yield made
    made.close()


def test_a_log_begins_empty(tmp_path: Path) -> None:
    for name in ("console.log", "console.log.1"):
        (tmp_path / name).write_bytes(b"of the last boot")
    log = ConsoleLog(tmp_path / "console.log")
    assert log.everything() == b""
    assert not (tmp_path / "console.log.1").exists()
    log.close()


def test_only_the_owner_reads_it(tmp_path: Path, log: ConsoleLog) -> None:
    assert (tmp_path / "console.log").stat().st_mode & 0o777 == 0o600


def test_rotation_keeps_between_one_and_two_limits(tmp_path: Path, log: ConsoleLog) -> None:
    lines = [f"line {n:04}\n".encode() for n in range(1000)]
    for line in lines:
        log.write(line)
        on_disk = sum(path.stat().st_size for path in tmp_path.iterdir())
        assert on_disk <= 2 * (1000 + 10)
    kept = log.everything()
    assert b"".join(lines).endswith(kept)
    assert len(kept) >= 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["console.log", "console.log.1"]


def test_one_write_longer_than_the_limit(log: ConsoleLog) -> None:
    log.write(bytes(5000))
    log.write(b"end")
    assert log.everything() == bytes(5000) + b"end"


def test_the_tail_begins_at_a_line(log: ConsoleLog) -> None:
    log.write(b"first\nsecond\nthird\n")
    assert log.tail(10) == b"third\n"
    assert log.tail(1000) == b"first\nsecond\nthird\n"
    assert log.tail(0) == log.tail(-5) == b""
    log.write(b"x" * 50)
    assert log.tail(20) == b"x" * 20, "there is no line to begin at"


def test_the_tail_is_bounded(log: ConsoleLog) -> None:
    for _ in range(40):
        log.write(bytes(4096))
    assert len(log.tail(1 << 30)) == TAIL_BYTES


def test_a_file_that_went_away_is_no_error(tmp_path: Path, log: ConsoleLog) -> None:
    log.write(b"before")
    (tmp_path / "console.log").unlink()
    log.write(b"x" * 2000)
    log.write(b"after")
    assert log.tail(5) == b"after"


def test_a_disk_that_is_full_is_no_error() -> None:
    log = ConsoleLog.__new__(ConsoleLog)
    log._tail, log._size, log._limit = bytearray(), 0, 1000
    log._fd = os.open("/dev/full", os.O_WRONLY)
    log.write(b"kept in memory")
    assert log.tail(100) == b"kept in memory"
    log.close()


# --- pty --------------------------------------------------------------------------------------


@pytest.fixture
def pty() -> Iterator[Pty]:
    made = Pty()
    yield made
    made.close()


def test_both_ways_without_translation(pty: Pty) -> None:
    other = os.open(pty.name, os.O_RDWR | os.O_NOCTTY)
    try:
        pty.write(b"out\r\n\x03")
        select.select([other], [], [])
        assert os.read(other, 100) == b"out\r\n\x03"
        os.write(other, b"in\r\x04\x1c")
        select.select([pty.master], [], [])
        assert pty.read() == b"in\r\x04\x1c"
    finally:
        os.close(other)
    assert pty.read() == b"", "nothing is echoed, and who leaves is no end"


def test_nobody_reads_the_output(pty: Pty) -> None:
    for _ in range(200):
        pty.write(bytes(4096))
    assert pty.read() == b""


def test_nothing_is_left_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    Pty().close()
    assert len(os.listdir("/proc/self/fd")) == before
