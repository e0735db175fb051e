"""Domain processes are born here; one is kept waiting, its imports done, to save that time.

Python and its imports are most of the time from `xl create` to the first guest instruction. The
spare process has done them and waits on its stdin for a specification. It may be killed at any
time, and ends by itself when xend does: its stdin then reaches its end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from pyxen.xend.pid import Pid
from pyxen.xend.process import spawn
from pyxen.xend.record import JsonObject

log = logging.getLogger(__name__)


class Nursery:
    """Starts domain processes."""

    def __init__(self, command: Sequence[str], logs: Path) -> None:
        self._command = tuple(command)
        self._logs = logs

    def spawn(self, spec: JsonObject) -> Pid:
        """A domain process that works on `spec`. ProcessGone, UserError, OSError."""
        log_dir = Path(spec["log_dir"])
        log_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        return spawn(self._command, spec, log_dir / "domain.log")

    def close(self) -> None:
        """Let the spare go."""
