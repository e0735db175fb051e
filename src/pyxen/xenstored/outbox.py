"""What waits to be sent to a client that reads slowly.

As long as the transport takes bytes they go straight to it. When it does not, they queue here.
Replies are bounded by not reading the client's requests meanwhile. Events come from others: one
that is already waiting is not queued again (the client will look after it has read the first), and
beyond the limit they are lost to a guest, while a host client loses its connection.
"""

from collections import deque
from collections.abc import Callable

EVENT_BACKLOG_BYTES = 1 << 20


class Outbox:
    """The sending side of one connection.

    `write` hands bytes to the transport, `blocked` tells that it should not be used now, `backlog`
    is called when something begins to wait, `overflow` when an event had to be lost.
    """

    __slots__ = ("_backlog", "_blocked", "_overflow", "_waiting", "_write", "event_bytes", "events")

    def __init__(
        self,
        write: Callable[[bytes], None],
        blocked: Callable[[], bool] = lambda: False,
        backlog: Callable[[], None] = lambda: None,
        overflow: Callable[[], None] = lambda: None,
    ) -> None:
        self._write = write
        self._blocked = blocked
        self._backlog = backlog
        self._overflow = overflow
        self._waiting: deque[bytes] = deque()
        self.events: set[bytes] = set()
        self.event_bytes = 0

    @property
    def waiting(self) -> int:
        """How many messages wait."""
        return len(self._waiting)

    def reply(self, data: bytes) -> None:
        """Send an answer."""
        if not self._waiting and not self._blocked():
            self._write(data)
        else:
            self._queue(data)

    def event(self, data: bytes, special: bool = False) -> None:
        """Send a watch event; special ones are never merged."""
        if not self._waiting and not self._blocked():
            self._write(data)
            return
        if not special:
            if data in self.events:
                return
            self.events.add(data)
        if self.event_bytes + len(data) > EVENT_BACKLOG_BYTES:
            self.events.discard(data)
            self._overflow()
            return
        self.event_bytes += len(data)
        self._queue(data)

    def _queue(self, data: bytes) -> None:
        self._waiting.append(data)
        if len(self._waiting) == 1:
            self._backlog()

    def flush(self) -> None:
        """Hand on what waits as far as the transport takes it."""
        while self._waiting and not self._blocked():
            self._write(self._waiting.popleft())
        if not self._waiting:
            self.events.clear()
            self.event_bytes = 0
