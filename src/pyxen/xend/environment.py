"""The environment in which xend and domain processes are started."""

from __future__ import annotations

import os


def child_environment() -> dict[str, str]:
    """This environment, with relative PYTHONPATH entries made absolute: a daemon has no cwd."""
    environment = dict(os.environ)
    python_path = environment.get("PYTHONPATH")
    if python_path:
        entries = [os.path.abspath(entry) for entry in python_path.split(os.pathsep) if entry]
        environment["PYTHONPATH"] = os.pathsep.join(entries)
    return environment
