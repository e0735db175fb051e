"""A pyxen home of its own for one test: xl, consoles, and the proof that nothing is left behind."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

LIMIT_S = 120.0
PROMPT = b"demo:/# "


class Session:
    """A program that shows a guest's console: `xl console` or `xl create -c`."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self.output = b""
        self._from = 0

    def expect(self, text: bytes, limit_s: float = LIMIT_S) -> bytes:
        """Output up to and with `text`, from where the last call ended."""
        deadline = time.monotonic() + limit_s
        while (at := self.output.find(text, self._from)) < 0:
            if not self._read(deadline - time.monotonic()):
                shown = self.output[-2000:].decode(errors="replace")
                raise AssertionError(f"the console did not say {text!r}; its end:\n{shown}")
        start, self._from = self._from, at + len(text)
        return self.output[start : self._from]

    def type(self, text: str) -> None:
        """Type into the guest."""
        assert self._process.stdin is not None
        self._process.stdin.write(text.encode())

    def run(self, command: str) -> str:
        """Run a shell command in the guest; returns what it printed."""
        self.type(command + "\n")
        self.expect(b"\n")
        shown = self.expect(PROMPT).removesuffix(PROMPT).decode(errors="replace")
        # What is typed while the shell is still on its way to its prompt is echoed twice: by the
        # terminal, and by the shell when it reads it.
        return shown.replace("\r", "").strip().removeprefix(command).strip()

    def interrupt(self) -> None:
        """Ctrl-C until the prompt is back: the shell may be between two commands when it comes."""
        for _ in range(20):
            self.type("\x03")
            try:
                self.expect(PROMPT, 2.0)
                return
            except AssertionError:
                continue
        raise AssertionError("the shell does not react to Ctrl-C")

    def end(self, limit_s: float = LIMIT_S) -> int:
        """Wait for the program to end by itself; its exit code."""
        deadline = time.monotonic() + limit_s
        while self._read(deadline - time.monotonic()):
            pass
        return self._process.wait(timeout=max(1.0, deadline - time.monotonic()))

    def leave(self) -> int:
        """Type Ctrl-]; the exit code."""
        self.type("\x1d")
        return self.end()

    def kill(self) -> None:
        """For the end of a test."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()

    def _read(self, timeout_s: float) -> bool:
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        ready, _, _ = select.select([fd], [], [], max(0.0, timeout_s))
        data = os.read(fd, 65536) if ready else b""
        self.output += data
        return bool(data)


class Host:
    """One PYXEN_HOME."""

    def __init__(self, home: Path, environment: dict[str, str] | None = None) -> None:
        self.home = home
        self.environment = {**os.environ, "PYXEN_HOME": str(home), **(environment or {})}
        self._sessions: list[Session] = []

    def xl(self, *arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run xl to its end; `check`: it has to succeed."""
        done = subprocess.run(
            [sys.executable, "-m", "pyxen.xl", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=LIMIT_S,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(f"xl {' '.join(arguments)}: {done.returncode}\n{done.stderr}")
        return done

    def session(self, *arguments: str) -> Session:
        """Start xl with its stdin and stdout connected to a Session."""
        process = subprocess.Popen(
            [sys.executable, "-m", "pyxen.xl", *arguments],
            env=self.environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            bufsize=0,
        )
        self._sessions.append(Session(process))
        return self._sessions[-1]

    def console(self, name: str) -> Session:
        """Attach to a guest's console."""
        return self.session("console", name)

    def list(self) -> list[list[str]]:
        """The rows of `xl list` but for the head and Domain-0, split into words."""
        rows = [line.split() for line in self.xl("list").stdout.splitlines()]
        return [row for row in rows[1:] if row[0] != "Domain-0"]

    def processes(self) -> list[int]:
        """All processes that belong to this home (xend, domains), by their environment."""
        mark = f"PYXEN_HOME={self.home}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if mark in (entry / "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
            except OSError:
                continue
        return found

    def xend_pid(self) -> int:
        """The daemon's process."""
        for pid in self.processes():
            if b"pyxen.xend" in Path(f"/proc/{pid}/cmdline").read_bytes():
                return pid
        raise AssertionError("no xend is running")

    def leftovers(self) -> set[str]:
        """What a domain could leave behind: sockets, state, xenstore nodes."""
        return {
            str(path.relative_to(self.home))
            for part in ("run", "domains")
            for path in (self.home / part).rglob("*")
        }

    def close(self) -> None:
        """End everything of this home."""
        for session in self._sessions:
            session.kill()
        for _ in range(100):
            pids = self.processes()
            if not pids:
                return
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.05)
        raise AssertionError(f"processes {self.processes()} do not end")


def write_config(path: Path, **settings: object) -> Path:
    """An xl.cfg from its settings."""
    lines = []
    for key, value in settings.items():
        lines.append(f'{key} = "{value}"' if isinstance(value, str | Path) else f"{key} = {value}")
    path.write_text("\n".join(lines) + "\n")
    return path


def wait_until(condition: object, limit_s: float = LIMIT_S) -> None:
    """Look again and again until `condition()` is true."""
    assert callable(condition)
    deadline = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)
