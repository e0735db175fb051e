"""The trusted end of the worker: asks, and checks and bounds what comes back."""

from __future__ import annotations

import contextlib
import json
import math
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from pyxen.bootloader import frames
from pyxen.bootloader.entry import Entry, File, Menu
from pyxen.bootloader.export import Source
from pyxen.errors import UserError

_T = TypeVar("_T")

FAILED = 3
"""What xl exits with when a domain cannot be created."""
ANSWER_SECONDS = 180.0
ENTRIES_MAX = 2000
TEXT_CHARS_MAX = 16384
FILES_MAX = 64


class BadAnswer(Exception):
    """The worker said what it should not; it may have been taken over."""


@dataclass
class FoundMenu:
    """A menu as the worker tells it: `default` and `fallback` are places in `menu.entries`."""

    menu: Menu
    default: int
    fallback: list[int] = field(default_factory=list)


class ImageReader:
    """A confined process with an image, for as long as the context lasts."""

    def __init__(self, source: Source, offset: int | None = None) -> None:
        self._offset = offset
        environment = {
            key: os.environ[key] for key in ("PYTHONPATH", "PATH", "HOME") if key in os.environ
        }
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", "pyxen.bootloader.worker"),
                *(source.kind, str(source.fd), str(source.size)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=[source.fd],
            env={**environment, "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
            cwd="/",
        )

    def __enter__(self) -> ImageReader:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):  # a question that nobody reads any more
                    stream.close()

    def menu(self, *, config: bool = False) -> FoundMenu:
        """The boot menu of the image; with `config` the image is a configuration itself.

        Raises: UserError (exit code 3) that names what was looked for.
        """
        return self._checked(_menu, self._json({"op": "menu", "config": config}))

    def look(self, file: File) -> str:
        """Where a file is. UserError if it is nowhere."""
        return self._checked(_where, self._json(self._about("look", file)))

    def copy(self, file: File, to: int, limit: int) -> int:
        """Copy a file to a descriptor; how long it was.

        Raises: UserError if it is nowhere, cannot be read, or is longer than `limit` bytes.
        """
        self._ask(self._about("read", file))
        total = 0
        while data := self._frame(frames.DATA):
            total += len(data)
            if total > limit:
                raise UserError(f"{file.path} is larger than {limit >> 20} MiB", "", FAILED)
            try:
                while data:
                    data = data[os.write(to, data) :]
            except OSError as error:
                raise UserError(f"no copy of {file.path}: {error.strerror}", "", FAILED) from error
        return total

    def _about(self, operation: str, file: File) -> dict[str, Any]:
        return {"op": operation, "volume": file.volume, "path": file.path}

    def _json(self, request: dict[str, Any]) -> Any:
        self._ask(request)
        payload = self._frame(frames.JSON)
        try:
            return json.loads(payload)
        except (ValueError, RecursionError):
            raise self._gone("it does not make sense") from None

    def _checked(self, check: Callable[[Any], _T], answer: Any) -> _T:
        try:
            return check(answer)
        except BadAnswer as error:
            raise self._gone(str(error)) from error

    def _ask(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        line = json.dumps({**request, "offset": self._offset}).encode() + b"\n"
        try:
            self._process.stdin.write(line)
            self._process.stdin.flush()
        except OSError:
            raise self._gone("") from None

    def _frame(self, wanted: bytes) -> bytes:
        """The payload of the next frame. UserError if it is an error, or not the one wanted."""
        deadline = time.monotonic() + ANSWER_SECONDS
        kind, length = frames.HEADER.unpack(self._read(frames.HEADER.size, deadline))
        if kind not in (wanted, frames.ERROR) or length > frames.LIMITS[kind]:
            raise self._gone("it broke the protocol")
        payload = self._read(length, deadline)
        if kind == frames.ERROR:
            message, _, hint = printable(payload.decode(errors="replace")).partition("\n")
            raise UserError(message, hint, FAILED)
        return payload

    def _read(self, length: int, deadline: float) -> bytes:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        parts = []
        while length:
            ready, _, _ = select.select([fd], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise self._gone("it takes too long")
            part = os.read(fd, length)
            if not part:
                raise self._gone("")
            parts.append(part)
            length -= len(part)
        return b"".join(parts)

    def _gone(self, why: str) -> UserError:
        """What to say when the worker is of no use any more."""
        if not why:
            try:
                code = self._process.wait(5)
            except subprocess.TimeoutExpired:
                code = 0
            why = f"it ended with code {code}"
            if code < 0:
                why = f"it was ended by {signal.Signals(-code).name}"
        self._process.kill()
        message = f"the process that reads the image failed: {why}"
        return UserError(message, "the file system may be damaged, or made to do harm", FAILED)


def printable(text: str) -> str:
    """Text of the guest's that may go to a terminal."""
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)


def _where(answer: Any) -> str:
    return printable(_text(_object(answer).get("where")))


def _menu(answer: Any) -> FoundMenu:
    answer = _object(answer)
    entries = answer.get("entries")
    if not isinstance(entries, list) or not 0 < len(entries) <= ENTRIES_MAX:
        raise BadAnswer(f"a menu without entries, or with more than {ENTRIES_MAX}")
    menu = Menu(printable(_text(answer.get("source"))), _number(answer.get("volume")))
    menu.entries = [_entry(_object(entry)) for entry in entries]
    menu.notes = [printable(_text(note)) for note in _list(answer.get("notes"), 200)]
    timeout = answer.get("timeout_s")
    menu.timeout_s = None
    if isinstance(timeout, float | int) and math.isfinite(timeout):
        menu.timeout_s = min(max(0.0, timeout), 86400.0)
    places = [_number(place) for place in _list(answer.get("fallback"), 64)]
    default = _number(answer.get("default"))
    if not all(0 <= place < len(entries) for place in (default, *places)):
        raise BadAnswer("an entry that is not in the menu")
    return FoundMenu(menu, default, places)


def _entry(answer: dict[str, Any]) -> Entry:
    kernel = answer.get("kernel")
    args = _text(answer.get("args"))
    if any(ord(c) < 32 and c != "\t" for c in args):
        raise BadAnswer("a command line with control characters")
    return Entry(
        printable(_text(answer.get("title"))),
        None if kernel is None else _file(kernel),
        args,
        [_file(file) for file in _list(answer.get("ramdisks"), FILES_MAX)],
        frozenset(_text(name) for name in _list(answer.get("names"), 1000)),
        _text(answer.get("numbers")),
        printable(_text(answer.get("note"))),
    )


def _file(answer: Any) -> File:
    volume, path = (*_list(answer, 2), None, None)[:2]
    text = _text(path)
    if "\0" in text:
        raise BadAnswer("a path with a NUL")
    return File(_number(volume), text)


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise BadAnswer("something else than was asked for")
    return value


def _list(value: Any, most: int) -> list[Any]:
    if not isinstance(value, list) or len(value) > most:
        raise BadAnswer("a list that is none, or too long")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > TEXT_CHARS_MAX:
        raise BadAnswer("a text that is none, or too long")
    return value


def _number(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not -1 <= value < 1 << 20:
        raise BadAnswer("a number that is none")
    return value
