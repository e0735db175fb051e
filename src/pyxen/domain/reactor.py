"""What wakes the run loop: I/O, timers, and a thread that only knocks.

All work is done by the loop's own thread. While that executes guest code, a second thread waits in
its place for file descriptors and for the deadline; when one comes it sets `attention` and kicks
the engine until the loop looks. It touches nothing else: a domain has no locks and can be forked.

While the loop sleeps the second thread waits for nothing, and a short burst of guest code between
two sleeps does not wake it: an idle guest wakes one thread only.
"""

from __future__ import annotations

import ctypes
import os
import select
import threading
import time
from collections.abc import Callable
from typing import Final

KICK_AGAIN_S: Final = 0.001
_TFD_ABSTIME: Final = 1
_CLOEXEC_NONBLOCK: Final = os.O_CLOEXEC | os.O_NONBLOCK
_NS: Final = 1_000_000_000

_libc = ctypes.CDLL(None, use_errno=True)

Handler = Callable[[int], None]
"""Called with the epoll events of a file descriptor."""


class Timer:
    """A timerfd on CLOCK_MONOTONIC."""

    def __init__(self) -> None:
        self.fd: int = _libc.timerfd_create(time.CLOCK_MONOTONIC, _CLOEXEC_NONBLOCK)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        self._spec = (ctypes.c_long * 4)()
        self._deadline_ns: int | None = None

    def expired(self) -> None:
        """It was seen to be readable, and stays so until it is set: even if to the same time."""
        self._deadline_ns = -1

    def set(self, deadline_ns: int | None) -> None:
        """Become readable at this time of the monotonic clock; None: never."""
        if deadline_ns == self._deadline_ns:
            return
        self._deadline_ns = deadline_ns
        if deadline_ns is None:
            self._spec[2] = self._spec[3] = 0
        else:
            self._spec[2], self._spec[3] = divmod(max(deadline_ns, 1), _NS)
        _libc.timerfd_settime(self.fd, _TFD_ABSTIME, self._spec, None)


class Reactor:
    """The World of a domain process (hypervisor/runloop.py)."""

    def __init__(self) -> None:
        self.attention = False
        self.closing = False
        self.kick: Callable[[], None] = lambda: None
        """Stops the engine; set when there is one."""
        self._ready = select.epoll()
        """Ready when the loop has something to do: I/O, or its deadline."""
        self._watch = select.epoll()
        """What the knocker waits for: `_ready` while guest code runs, else nothing."""
        self._handlers: dict[int, Handler] = {}
        self._timer = Timer()
        self._ready.register(self._timer.fd, select.EPOLLIN)
        self._watch.register(self._ready.fileno(), 0)
        self._running = False
        self._looked = threading.Event()
        self._knocker: threading.Thread | None = None

    # --- file descriptors -------------------------------------------------------------------

    def add(self, fd: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        """Call `handler` whenever one of the events is there (level-triggered)."""
        self._ready.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a file descriptor."""
        self._ready.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a file descriptor; before it is closed."""
        self._ready.unregister(fd)
        del self._handlers[fd]

    # --- World ------------------------------------------------------------------------------

    def arm(self, deadline_ns: int | None) -> None:
        """The loop is about to execute guest code, or has another deadline meanwhile."""
        self._timer.set(deadline_ns)
        if not self._running:
            if self._knocker is None:
                self._knocker = threading.Thread(target=self._knock, name="knocker", daemon=True)
                self._knocker.start()
            self._running = True
            self._watch.modify(self._ready.fileno(), select.EPOLLIN | select.EPOLLONESHOT)

    def poll(self) -> None:
        """The loop looks: handle what is ready."""
        self._stop_knocking()
        self._dispatch(0)

    def wait(self, deadline_ns: int | None) -> None:
        """The loop has nothing to execute: sleep."""
        self._stop_knocking()
        # A timer, because epoll's own timeout counts in milliseconds.
        self._timer.set(deadline_ns)
        self._dispatch(None)

    def close(self) -> None:
        """Make the loop end, soon."""
        self.closing = True
        self.attention = True

    # --- inside -----------------------------------------------------------------------------

    def _stop_knocking(self) -> None:
        if self._running:
            self._running = False
            self._watch.modify(self._ready.fileno(), 0)
        self.attention = self.closing
        self._looked.set()

    def _dispatch(self, timeout_s: float | None) -> None:
        for fd, events in self._ready.poll(timeout_s, 64):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
            elif fd == self._timer.fd:
                self._timer.expired()

    def _knock(self) -> None:
        """The second thread."""
        while True:
            self._watch.poll()
            if not self._running:
                continue
            self._looked.clear()
            self.attention = True
            # Not while the loop sleeps, should it have looked before we said so.
            while self.attention and self._running and not self.closing:
                self.kick()
                self._looked.wait(KICK_AGAIN_S)
