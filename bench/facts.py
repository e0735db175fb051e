"""The machine, and the versions that were measured."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path


def machine_facts() -> dict[str, object]:
    """CPU, cores, memory, kernels: what a reader needs to compare two machines."""
    return {
        "cpu": _value(Path("/proc/cpuinfo"), "model name"),
        "cores": len(os.sched_getaffinity(0)),
        "memory": _value(Path("/proc/meminfo"), "MemTotal"),
        "system": f"{platform.system()} {platform.release()}",
        "distribution": _value(Path("/etc/os-release"), "PRETTY_NAME", "=").strip('"'),
        "virtualised": "hypervisor" in _value(Path("/proc/cpuinfo"), "flags").split(),
        "python": platform.python_version(),
        "unicorn": _package("unicorn"),
    }


def source_commit() -> str:
    """The commit that is measured, with a + if files differ from it."""
    commit = _git("rev-parse", "--short=12", "HEAD")
    return f"{commit}+" if commit and _git("status", "--porcelain", "src") else commit or "unknown"


def load() -> float:
    """The load average over the last minute: others at work spoil a run."""
    return os.getloadavg()[0]


def _git(*words: str) -> str:
    here = Path(__file__).parent
    try:
        done = subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=False
        )
    except OSError:
        return ""
    return done.stdout.strip()


def _value(path: Path, key: str, separator: str = ":") -> str:
    try:
        lines = path.read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        name, found, value = line.partition(separator)
        if found and name.strip() == key:
            return value.strip()
    return "unknown"


def _package(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "unknown"
