"""What xend remembers of a domain over its own death: one JSON file a domain."""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeAlias

JsonObject: TypeAlias = dict[str, Any]

BUILDING = "building"
"""Its creation is under way; found by a new xend, it is rolled back."""
LIVE = "live"
"""It exists: running, paused, or shut down and preserved."""
ENDING = "ending"
"""Its destruction is under way; found by a new xend, it is finished."""
RESTARTING = "restarting"
"""Its destruction is under way, and then it starts again; found by a new xend, both are done."""


@dataclass(slots=True)
class DomainRecord:
    """One domain. `config` is the libxl JSON of it, `spec` what its process was given.

    start_time: seconds since 1970. pid_start: start time of the process in clock ticks since boot,
    so that a recycled pid is not taken for it. restarted: it replaces one that ended; restarts: how
    often in succession that happened soon after the start.
    """

    domid: int
    name: str
    uuid: str
    config: JsonObject
    spec: JsonObject = field(default_factory=dict)
    phase: str = BUILDING
    pid: int = 0
    pid_start: int = 0
    start_time: float = 0.0
    monitor: bool = True
    built: JsonObject = field(default_factory=dict)
    shutdown_reason: str | None = None
    crash_report: str | None = None
    restarted: bool = False
    restarts: int = 0

    def save(self, directory: Path) -> None:
        """Write it to `directory`/domain.json, whole or not at all."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_whole(directory / "domain.json", json.dumps(asdict(self)))

    @classmethod
    def load(cls, directory: Path) -> DomainRecord:
        """Read it back. ValueError if the file is not one of ours, OSError if it is not there."""
        try:
            stored = json.loads((directory / "domain.json").read_text())
            known = {f.name for f in fields(cls)}
            return cls(**{key: value for key, value in stored.items() if key in known})
        except (TypeError, AttributeError) as error:
            raise ValueError(f"{directory}: {error}") from error


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one step, so that a reader or a kill never sees half of it."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    scratch.write_text(text)
    scratch.replace(path)
