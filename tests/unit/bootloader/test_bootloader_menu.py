"""The menu on a pty: what keys do."""

from __future__ import annotations

import os
import pty
import select
import threading
from collections.abc import Iterator

import pytest

from pyxen.bootloader.entry import Entry, File, Menu
from pyxen.bootloader.menu import Chosen, choose

TITLES = ("alpha", "beta", "gamma")


def entries() -> list[Entry]:
    made = [Entry(title, File(0, "/k"), f"root={title}") for title in TITLES]
    made.append(Entry("broken", note="it loads no kernel"))
    return made


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def play(
    terminal: tuple[int, int], keys: list[bytes], timeout_s: float | None = None
) -> tuple[Chosen | None, bytes]:
    """What is chosen by typing each of `keys` when the screen has been drawn anew."""
    master, slave = terminal
    menu = Menu("/boot/grub/grub.cfg", 0, entries(), timeout_s=timeout_s)
    chosen: list[Chosen | None] = []
    thread = threading.Thread(
        target=lambda: chosen.append(choose(menu, 1, slave, slave)), daemon=True
    )
    thread.start()
    screen = b""
    while thread.is_alive() or select.select([master], [], [], 0.1)[0]:
        if select.select([master], [], [], 0.3)[0]:
            screen += os.read(master, 65536)
        elif keys:
            os.write(master, keys.pop(0))
    thread.join()
    return chosen[0], screen


@pytest.mark.parametrize(
    ("keys", "index"),
    [
        ([b"\r"], 1),
        ([b"\x1b[B", b"\r"], 2),
        ([b"\x1bOA", b"\r"], 0),
        ([b"\x1b[A", b"\x1b[A", b"\x1b[A", b"\n"], 0),
        ([b"j", b"j", b"j", b"k", b"\r"], 2),
        ([b"e", b"\x1b", b"\r"], 1),
    ],
)
def test_choosing(terminal: tuple[int, int], keys: list[bytes], index: int) -> None:
    chosen, screen = play(terminal, keys)
    assert chosen == Chosen(index)
    assert b"\x1b[7m > beta" in screen


@pytest.mark.parametrize("key", [b"q", b"\x1b"])
def test_leaving(terminal: tuple[int, int], key: bytes) -> None:
    assert play(terminal, [key])[0] is None


def test_the_time_out_takes_the_default(terminal: tuple[int, int]) -> None:
    chosen, screen = play(terminal, [], timeout_s=0.5)
    assert chosen == Chosen(1)
    assert b"is booted in 1 s" in screen


@pytest.mark.parametrize(
    ("keys", "args"),
    [
        ([b"e", b" single", b"\r"], "root=beta single"),
        ([b"e", b"\x01", b"a ", b"\r"], "a root=beta"),
        ([b"e", b"\x7f\x7f\x7f\x7f", b"x", b"\r"], "root=x"),
        ([b"e", b"\x15", b"new", b"\x1b[D", b"\x0b", b"\r"], "ne"),
        ([b"e", b"\x1b[H", b"\x1b[3~", b"\x05", b"!", b"\r"], "oot=beta!"),
    ],
)
def test_editing(terminal: tuple[int, int], keys: list[bytes], args: str) -> None:
    assert play(terminal, keys)[0] == Chosen(1, args)


def test_why_an_entry_cannot_be_started_is_shown(terminal: tuple[int, int]) -> None:
    _, screen = play(terminal, [b"j", b"j", b"e", b"q"])
    assert b"cannot be started: it loads no kernel" in screen
