"""python -m pyxen.domain: reads the specification (one JSON line) from stdin, then runs the domain.

With --spare it has been started before there is anything to do: stdin may end without a line.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys

from pyxen.domain.process import DomainProcess


def main() -> int:
    """Exit code: 0 after a destroyed domain, 1 if the specification cannot be used."""
    line = sys.stdin.buffer.readline()
    if not line:
        return 0
    # xend's terminal is not ours, and a reader that leaves is not the end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        process = DomainProcess(json.loads(line))
    except (KeyError, ValueError, TypeError, OSError) as error:
        print(f"cannot start from this specification: {error!r}", file=sys.stderr)
        return 1
    show_name(process.name)
    process.run()
    sys.stdout.flush()
    sys.stderr.flush()
    # No interpreter shutdown: the engine's threads and maps end with the process.
    os._exit(0)


def show_name(name: str) -> None:
    """Let `ps` and `top` show which domain this process is (PR_SET_NAME keeps 15 bytes)."""
    pr_set_name = 15
    ctypes.CDLL(None).prctl(pr_set_name, b"xen:" + name.encode(errors="replace"), 0, 0, 0)


if __name__ == "__main__":
    sys.exit(main())
