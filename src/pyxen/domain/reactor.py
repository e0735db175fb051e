"""What wakes the run loop: I/O, timers, and a thread that only knocks.

All work is done by the loop's own thread. While that executes guest code, a second thread waits in
its place for file descriptors and for the deadline; when one comes it sets `attention` and kicks
the engine until the loop looks. It touches nothing else: a domain has no locks and can be forked.
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

    def set(self, deadline_ns: int | None) -> None:
        """Become readable at this time of the monotonic clock; None: never."""
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
        self._io = select.epoll()
        self._watch = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timer = Timer()
        self._armed_for: int | None = None
        self._sleep = Timer()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._watch.register(self._io.fileno(), select.EPOLLIN)
        self._watch.register(self._timer.fd, select.EPOLLIN)
        self._io.register(self._wake, select.EPOLLIN)
        self._io.register(self._sleep.fd, select.EPOLLIN)
        self._running = threading.Event()
        self._looked = threading.Event()
        self._knocker: threading.Thread | None = None

    # --- file descriptors -------------------------------------------------------------------

    def add(self, fd: int, handler: Handler, events: int = select.EPOLLIN) -> None:
        """Call `handler` whenever one of the events is there (level-triggered)."""
        self._io.register(fd, events)
        self._handlers[fd] = handler

    def change(self, fd: int, events: int) -> None:
        """Wait for other events on a file descriptor."""
        self._io.modify(fd, events)

    def remove(self, fd: int) -> None:
        """Forget a file descriptor; before it is closed."""
        self._io.unregister(fd)
        del self._handlers[fd]

    # --- World ------------------------------------------------------------------------------

    def arm(self, deadline_ns: int | None) -> None:
        """The loop is about to execute guest code."""
        if deadline_ns != self._armed_for:
            self._timer.set(deadline_ns)
            self._armed_for = deadline_ns
        if not self._running.is_set():
            if self._knocker is None:
                self._knocker = threading.Thread(target=self._knock, name="knocker", daemon=True)
                self._knocker.start()
            self._running.set()

    def poll(self) -> None:
        """The loop looks: handle what is ready."""
        self._stop_knocking()
        self._dispatch(0)

    def wait(self, deadline_ns: int | None) -> None:
        """The loop has nothing to execute: sleep."""
        self._stop_knocking()
        # A timer, because epoll's own timeout counts in milliseconds.
        self._sleep.set(deadline_ns)
        self._dispatch(None)
        self._sleep.set(None)

    def close(self) -> None:
        """Make the loop end, soon."""
        self.closing = True
        self.attention = True

    # --- inside -----------------------------------------------------------------------------

    def _stop_knocking(self) -> None:
        self._running.clear()
        self.attention = self.closing
        self._looked.set()

    def _dispatch(self, timeout_s: float | None) -> None:
        for fd, events in self._io.poll(timeout_s, 64):
            handler = self._handlers.get(fd)
            if handler is not None:
                handler(events)
            elif fd == self._wake:
                os.eventfd_read(self._wake)

    def _knock(self) -> None:
        """The second thread."""
        while True:
            self._running.wait()
            self._watch.poll()
            if not self._running.is_set():
                continue
            self._looked.clear()
            self.attention = True
            # Not while the loop sleeps, should it have looked before we said so.
            while self.attention and self._running.is_set() and not self.closing:
                self.kick()
                self._looked.wait(KICK_AGAIN_S)
