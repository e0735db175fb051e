"""Threads for what may block, and the way back to the domain's thread.

A domain has no locks: all its work is done on one thread. A worker gets a function that touches
nothing but files and the buffers that it was given. What came of it is posted to Completions,
whose file descriptor becomes readable; the domain's thread then calls `drain`.
"""

from __future__ import annotations

import os
import select
import threading
from collections import deque
from collections.abc import Callable
from errno import EIO
from functools import partial
from queue import SimpleQueue
from typing import Final

THREADS: Final = 4
"""As many operations can block at the same time, as flushes and reads of different disks."""

Work = Callable[[], int]
Done = Callable[[int], None]


class Completions:
    """Functions to be called on the domain's thread, in the order in which they were posted."""

    def __init__(self) -> None:
        self._posted: deque[Callable[[], None]] = deque()
        self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._drains = 0
        """The thread that drains just now."""

    def fileno(self) -> int:
        """Readable when there is something to drain."""
        return self._event

    def post(self, function: Callable[[], None]) -> None:
        """Have a function called by `drain`. From any thread."""
        self._posted.append(function)
        if self._drains != threading.get_ident():  # who drains looks once more anyway
            os.eventfd_write(self._event, 1)

    def drain(self) -> None:
        """Call what is posted, and then what that posted in turn; no more, so that it ends."""
        try:
            os.eventfd_read(self._event)
        except BlockingIOError:
            return
        self._drains = threading.get_ident()
        try:
            for _ in range(2):
                for _ in range(len(self._posted)):
                    self._posted.popleft()()
        finally:
            self._drains = 0
            if self._posted:
                os.eventfd_write(self._event, 1)

    def wait(self) -> None:
        """Sleep until something is posted, and drain."""
        waiting = select.poll()
        waiting.register(self._event, select.POLLIN)
        waiting.poll()
        self.drain()

    def close(self) -> None:
        """Nothing may be posted any more."""
        os.close(self._event)


class Workers:
    """A few threads, started when the first work comes; they live as long as the process."""

    def __init__(self, completions: Completions, threads: int = THREADS) -> None:
        self.completions = completions
        self._queue: SimpleQueue[tuple[Work, Done] | None] = SimpleQueue()
        self._wanted = threads
        self._threads: list[threading.Thread] = []

    def submit(self, work: Work, done: Done) -> None:
        """Call `work` on a thread, then `done` with its result (0 or an errno) on the domain's.

        OSError is a result, too. Any other exception is raised again by `Completions.drain`.
        """
        if len(self._threads) < self._wanted:
            thread = threading.Thread(target=self._run, name="disk", daemon=True)
            self._threads.append(thread)
            thread.start()
        self._queue.put((work, done))

    def close(self) -> None:
        """End the threads, after what was submitted."""
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
        self._threads.clear()

    def _run(self) -> None:
        while self._work():
            pass

    def _work(self) -> bool:
        """One piece; a function of its own, so that no buffer is held while there is none."""
        item = self._queue.get()
        if item is None:
            return False
        self.completions.post(_outcome(*item))
        return True


def _outcome(work: Work, done: Done) -> Callable[[], None]:
    """What the domain's thread is to do about a piece of work."""
    try:
        errno = work()
    except OSError as error:
        errno = error.errno or EIO
    except Exception as bug:
        return partial(_raise, bug)
    return partial(done, errno)


def _raise(bug: Exception) -> None:
    raise bug
