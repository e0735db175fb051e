"""The demo without a terminal: boot, look around in the guest, list it, shut it down.

Usage: demo_session.py BIN CONFIG. Exit code 0 if everything went as it should.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

PROMPT = b"demo:/# "
LIMIT_S = 180.0


class Session:
    """A guest's console, through `xl create -c`."""

    def __init__(self, command: list[str]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self._seen = b""

    def expect(self, text: bytes) -> None:
        """Show output until `text` came. Raises: SystemExit if it does not come."""
        assert self._process.stdout is not None
        deadline = time.monotonic() + LIMIT_S
        while text not in self._seen:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._process.stdout], [], [], max(0.0, left))
            data = os.read(self._process.stdout.fileno(), 65536) if ready else b""
            if not data:
                sys.exit(f"\ndemo: the guest did not say {text.decode()!r}")
            _show(data)
            self._seen += data
        self._seen = self._seen.partition(text)[2]

    def type(self, line: str) -> None:
        """Type a line into the guest."""
        assert self._process.stdin is not None
        self._process.stdin.write(line.encode() + b"\n")

    def end(self) -> int:
        """Show what is left, and wait for xl."""
        assert self._process.stdin is not None and self._process.stdout is not None
        while data := self._process.stdout.read(65536):
            _show(data)
        self._process.stdin.close()
        return self._process.wait(timeout=LIMIT_S)


def _show(data: bytes) -> None:
    """Without the shell's question where the cursor is: nobody is there to answer."""
    sys.stdout.buffer.write(data.replace(b"\x1b[6n", b""))
    sys.stdout.flush()


def main() -> int:
    """Run the session."""
    binaries, config = Path(sys.argv[1]), sys.argv[2]
    xl = str(binaries / "xl")
    session = Session([xl, "create", "-c", config])
    session.expect(PROMPT)
    for command in ("uname -a", "cat /proc/cpuinfo"):
        session.type(command)
        session.expect(PROMPT)
    print("\n\n$ xl list", flush=True)
    if subprocess.run([xl, "list"], check=False).returncode:
        return 1
    print("\n$ xl shutdown -w demo", flush=True)
    waiting = subprocess.Popen([xl, "shutdown", "-w", "demo"])
    code = session.end()
    code = code or waiting.wait(timeout=LIMIT_S)
    print("\n$ xl list", flush=True)
    return code or subprocess.run([xl, "list"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
