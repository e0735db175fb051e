"""Domain processes are born here; one is kept waiting, its imports done, to save that time.

Python and its imports are most of the time from `xl create` to the first guest instruction. The
spare process has done them and waits on its stdin for a specification. It may be killed at any
time, and ends by itself when xend does: its stdin then reaches its end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from pathlib import Path

from pyxen.errors import UserError
from pyxen.xend.pid import Pid, start_ticks
from pyxen.xend.process import ProcessGone, start_process, write_spec
from pyxen.xend.record import JsonObject

log = logging.getLogger(__name__)

REPLACE_SECONDS = 3.0
"""When the next spare is started: the guest that just got the last one has its start first."""


class Nursery:
    """Starts domain processes. `spare` False keeps none waiting."""

    def __init__(self, command: tuple[str, ...], logs: Path, *, spare: bool = True) -> None:
        self._command = command
        self._logs = logs
        self._wants_spare = spare
        self._spare: _Spare | None = None
        self._next: asyncio.TimerHandle | None = None

    def prepare(self) -> None:
        """Start the spare process, if one is wanted and there is none."""
        self._next = None
        for left_by_a_killed_xend in self._logs.glob(".spare-*.log"):
            left_by_a_killed_xend.unlink(missing_ok=True)
        if not self._wants_spare or self._spare is not None:
            return
        try:
            self._spare = _Spare((*self._command, "--spare"), self._logs)
        except (OSError, ProcessGone) as error:
            log.warning("no spare domain process: %s", error)

    def take_spare(self, spec: JsonObject) -> Pid | None:
        """The waiting process, now with a specification; None if there is none that lives.

        It may die before it has done anything, of what befell it as a spare.
        """
        spare, self._spare = self._spare, None
        return None if spare is None else spare.use(spec, self._log_path(spec))

    def spawn(self, spec: JsonObject) -> Pid:
        """A new domain process that works on `spec`. ProcessGone, UserError, OSError."""
        read, write = os.pipe2(os.O_CLOEXEC)
        try:
            # Before the process exists: a specification that does not fit leaves nothing behind.
            write_spec(write, spec)
            return start_process(self._command, read, self._log_path(spec))
        finally:
            os.close(read)
            os.close(write)

    def replace_later(self) -> None:
        """See to it that there is a spare again before long."""
        if self._wants_spare and self._next is None:
            loop = asyncio.get_running_loop()
            self._next = loop.call_later(REPLACE_SECONDS, self.prepare)

    def _log_path(self, spec: JsonObject) -> Path:
        log_dir = Path(spec["log_dir"])
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return log_dir / "domain.log"

    def close(self) -> None:
        """Let the spare go."""
        if self._next is not None:
            self._next.cancel()
        if self._spare is not None:
            self._spare.dismiss()
            self._spare = None


class _Spare:
    """One waiting process."""

    def __init__(self, command: tuple[str, ...], logs: Path) -> None:
        self._log = logs / f".spare-{os.getpid()}.log"
        read, self._spec_fd = os.pipe2(os.O_CLOEXEC)
        try:
            self._pid = start_process(command, read, self._log)
        except BaseException:
            os.close(self._spec_fd)
            self._log.unlink(missing_ok=True)
            raise
        finally:
            os.close(read)

    def use(self, spec: JsonObject, log_path: Path) -> Pid | None:
        """Hand it the specification; None if it has died. Its log becomes the domain's."""
        if start_ticks(self._pid.pid) != self._pid.start:
            self.dismiss()
            return None
        try:
            write_spec(self._spec_fd, spec)
            self._log.rename(log_path)
        except (OSError, UserError):
            self.dismiss()
            return None
        os.close(self._spec_fd)
        return self._pid

    def dismiss(self) -> None:
        """End it."""
        os.close(self._spec_fd)
        self._pid.signal(signal.SIGKILL)
        self._pid.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid.pid, 0)
        self._log.unlink(missing_ok=True)
