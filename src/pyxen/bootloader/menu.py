"""The boot menu on a terminal: arrow keys, Enter, `e` edits the command line, a time-out."""

from __future__ import annotations

import os
import select
import shutil
import termios
import time
import tty
from dataclasses import dataclass

from pyxen.bootloader.entry import Menu

ROWS_MAX = 12
KEY_BYTES = 32
ESCAPE_SECONDS = 0.05
_KEYS = {
    b"\x1b[A": "up",
    b"\x1bOA": "up",
    b"k": "up",
    b"\x1b[B": "down",
    b"\x1bOB": "down",
    b"j": "down",
    b"\r": "enter",
    b"\n": "enter",
    b"e": "edit",
    b"a": "edit",
    b"q": "leave",
    b"\x1b": "leave",
    b"\x03": "leave",
}


@dataclass(frozen=True)
class Chosen:
    """An entry, and its command line if it was edited."""

    index: int
    args: str | None = None


def choose(menu: Menu, default: int, keys: int, screen: int) -> Chosen | None:
    """Let a person choose. None: they do not want any.

    Args: keys, screen: descriptors of a terminal, for reading and writing.
    """
    before = termios.tcgetattr(keys)
    try:
        tty.setcbreak(keys)
        return _Screen(menu, default, keys, screen).run()
    except KeyboardInterrupt:
        return None
    finally:
        termios.tcsetattr(keys, termios.TCSADRAIN, before)
        os.write(screen, b"\x1b[?25h\r\n")


class _Screen:
    def __init__(self, menu: Menu, default: int, keys: int, screen: int) -> None:
        self._menu = menu
        self._at = default
        self._keys = keys
        self._screen = screen
        self._first = 0
        self._width = max(40, shutil.get_terminal_size().columns)

    def run(self) -> Chosen | None:
        timeout = self._menu.timeout_s
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return Chosen(self._at)
            self._draw(left)
            key = self._key(None if left is None else min(left, 1.0))
            if not key:
                continue
            deadline = None
            match _KEYS.get(key):
                case "up":
                    self._at = max(0, self._at - 1)
                case "down":
                    self._at = min(len(self._menu.entries) - 1, self._at + 1)
                case "enter":
                    return Chosen(self._at)
                case "leave":
                    return None
                case "edit" if self._menu.entries[self._at].kernel:
                    args = self._edit(self._menu.entries[self._at].args)
                    if args is not None:
                        return Chosen(self._at, args)

    def _draw(self, left_s: float | None) -> None:
        """Draw all of it anew."""
        entries = self._menu.entries
        self._first = min(self._first, self._at)
        self._first = max(self._first, self._at - ROWS_MAX + 1)
        lines = [f"  pyxen pygrub    {self._menu.source}", ""]
        for index in range(self._first, min(len(entries), self._first + ROWS_MAX)):
            title = f" {'>' if index == self._at else ' '} {entries[index].title.expandtabs()}"
            title = title[: self._width - 1]
            lines.append(f"\x1b[7m{title}\x1b[0m" if index == self._at else title)
        note = entries[self._at].note
        lines += [
            "",
            f"  cannot be started: {note}"[: self._width - 1] if note else "",
            "  Up and down choose, Enter boots, e edits the kernel's arguments, q leaves.",
        ]
        if left_s is not None:
            lines.append(f"  The highlighted entry is booted in {int(left_s + 0.999)} s.")
        text = "\x1b[?25l\x1b[H\x1b[2J" + "\r\n".join(lines)
        os.write(self._screen, text.encode())

    def _key(self, timeout_s: float | None) -> bytes:
        """One key's bytes; nothing if none came in time. The end of input is the wish to leave."""
        if not select.select([self._keys], [], [], timeout_s)[0]:
            return b""
        key = os.read(self._keys, 1)
        if key == b"\x1b":
            while select.select([self._keys], [], [], ESCAPE_SECONDS)[0] and len(key) < KEY_BYTES:
                key += os.read(self._keys, 1)
                if (len(key) > 2 and key[-1:].isalpha()) or key[-1:] == b"~":
                    break
        return key or b"q"

    def _edit(self, text: str) -> str | None:
        """Edit a line. None: leave it as it was."""
        line, at = list(text), len(text)
        while True:
            self._show_line("".join(line), at)
            match self._key(None):
                case b"\r" | b"\n":
                    return "".join(line)
                case b"\x1b" | b"\x03" | b"\x04":
                    return None
                case b"\x7f" | b"\x08":
                    del line[max(0, at - 1) : at]
                    at = max(0, at - 1)
                case b"\x1b[D" | b"\x1bOD" | b"\x02":
                    at = max(0, at - 1)
                case b"\x1b[C" | b"\x1bOC" | b"\x06":
                    at = min(len(line), at + 1)
                case b"\x1b[3~":
                    del line[at : at + 1]
                case b"\x01" | b"\x1b[H":
                    at = 0
                case b"\x05" | b"\x1b[F":
                    at = len(line)
                case b"\x0b":
                    del line[at:]
                case b"\x15":
                    del line[:at]
                    at = 0
                case key if len(key) == 1 and 32 <= key[0] < 127:
                    line.insert(at, key.decode())
                    at += 1

    def _show_line(self, text: str, at: int) -> None:
        """As much of the line as there is room for, with the cursor in it."""
        room = self._width - 3
        first = max(0, at - room + 1)
        head = "  Enter boots with these arguments, Escape goes back."
        shown = f"\x1b[H\x1b[2J{head}\r\n\r\n> {text[first : first + room]}"
        column = 3 + at - first
        os.write(self._screen, f"\x1b[?25h{shown}\x1b[3;{column}H".encode())
