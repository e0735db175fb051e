"""Process identities that survive the recycling of pids."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal


def start_ticks(pid: int) -> int | None:
    """Start time of a process in clock ticks since boot; None if there is no such process.

    Source: proc(5), field 22 of /proc/pid/stat. A zombie counts as gone.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as stat:
            fields = stat.read().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else int(fields[19])


class Pid:
    """One process, held by a descriptor: signals never reach another one with the same number."""

    def __init__(self, pid: int, start: int | None = None) -> None:
        """`start`: what `start_ticks` must say. ProcessLookupError if that process is gone."""
        self.pid = pid
        self._fd = os.pidfd_open(pid)
        # The number is looked at again through the descriptor's eyes: it may have been recycled
        # between the caller's look and pidfd_open.
        self.start = start_ticks(pid)
        if self.start is None or (start is not None and self.start != start):
            os.close(self._fd)
            raise ProcessLookupError(pid)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal; a process that is gone already is no error."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._fd, number)

    async def gone(self) -> None:
        """Return when the process has ended; reaps it if it is a child of this one."""
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[None] = loop.create_future()
        watch = os.dup(self._fd)

        def note() -> None:
            if not ended.done():
                ended.set_result(None)

        loop.add_reader(watch, note)
        try:
            await ended
        finally:
            loop.remove_reader(watch)
            os.close(watch)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, os.WNOHANG)

    def close(self) -> None:
        """Give the descriptor back."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
