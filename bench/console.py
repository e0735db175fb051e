"""What a guest prints, with the time at which it came."""

from __future__ import annotations

import os
import select
import time
from typing import IO

CHUNK_BYTES = 1 << 16
TAIL_BYTES = 2000


class GuestFailure(Exception):
    """The guest did not say what it should have said; the message has the end of its console."""


class Console:
    """The console of one guest behind two pipes. Times are seconds of time.monotonic()."""

    def __init__(self, output: IO[bytes], keys: IO[bytes]) -> None:
        self._output = output
        self._keys = keys
        self._text = bytearray()
        self._arrivals: list[tuple[int, float]] = []
        self._seen = 0

    @property
    def text(self) -> bytes:
        """Everything that has been read."""
        return bytes(self._text)

    @property
    def first_byte(self) -> float:
        """When the guest's first byte came; `wait_for` has returned before."""
        return self._arrivals[0][1]

    @property
    def found_at(self) -> float:
        """When what `wait_for` found last was complete."""
        return self._arrival(self._seen)

    def wait_for(self, text: bytes, seconds: float) -> float:
        """When the next `text` was complete. GuestFailure if it does not come in time."""
        deadline = time.monotonic() + seconds
        while (at := self._text.find(text, self._seen)) < 0:
            self._read(text, deadline)
        self._seen = at + len(text)
        return self._arrival(self._seen)

    def rest_of_line(self, seconds: float) -> bytes:
        """What follows on the line where `wait_for` left off."""
        begin = self._seen
        self.wait_for(b"\n", seconds)
        return bytes(self._text[begin : self._seen]).strip()

    def arrival_of(self, text: bytes) -> float | None:
        """When the first `text` among all that was read was complete, None if it is not there."""
        at = self._text.find(text)
        return None if at < 0 else self._arrival(at + len(text))

    def type(self, line: str) -> None:
        """Type a line into the guest."""
        self._keys.write(line.encode() + b"\n")
        self._keys.flush()

    def _arrival(self, end: int) -> float:
        return next(when for length, when in self._arrivals if length >= end)

    def _read(self, wanted: bytes, deadline: float) -> None:
        left = deadline - time.monotonic()
        ready, _, _ = select.select([self._output], [], [], max(0.0, left))
        data = os.read(self._output.fileno(), CHUNK_BYTES) if ready else b""
        if not data:
            why = "its console closed" if ready else "time is up"
            tail = self._text[-TAIL_BYTES:].decode(errors="replace")
            raise GuestFailure(f"no {wanted.decode()!r}: {why}. The end of the console:\n{tail}")
        self._text += data
        self._arrivals.append((len(self._text), time.monotonic()))
