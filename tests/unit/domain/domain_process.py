"""A real domain process, and connections to its control socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from tiny_kernel import tiny_kernel

from pyxen.paths import connect_unix

PATIENCE_S = 60


class Stream:
    """One connection; reads block until there is an answer."""

    def __init__(self, path: Path, header: dict[str, Any] | bytes) -> None:
        self.sock = connect_unix(path)
        self.sock.settimeout(PATIENCE_S)
        self._kept = b""
        line = header if isinstance(header, bytes) else json.dumps(header).encode() + b"\n"
        self.sock.sendall(line)

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def read_until(self, wanted: bytes) -> bytes:
        while wanted not in self._kept:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError(self._kept)
            self._kept += data
        before, _, self._kept = self._kept.partition(wanted)
        return before + wanted

    def line(self) -> dict[str, Any]:
        message: dict[str, Any] = json.loads(self.read_until(b"\n"))
        return message

    def at_end(self) -> bool:
        """Whether the other side closed the connection, without a further byte."""
        try:
            return self._kept + self.sock.recv(65536) == b""
        except ConnectionResetError:
            return True

    def close(self) -> None:
        self.sock.close()


class Process:
    """python -m pyxen.domain with a tiny kernel."""

    def __init__(self, directory: Path, text: bytes = b"hello from the guest\n", end: str = "sleep",
                 hypercall_page: bool = False, **changes: Any) -> None:  # fmt: skip
        self.directory = directory
        self.run_dir, self.log_dir = directory / "run", directory / "log"
        self.run_dir.mkdir()
        kernel = directory / "kernel"
        kernel.write_bytes(tiny_kernel(text, end, hypercall_page=hypercall_page))
        spec = {
            "domid": 7, "uuid": "12345678-1234-5678-1234-567812345678", "name": "tiny",
            "memory_kib": 8192, "maxmem_kib": 8192, "maxvcpus": 1, "kernel": str(kernel),
            "ramdisk": None, "cmdline": "",
            "state_dir": str(directory), "run_dir": str(self.run_dir),
            "log_dir": str(self.log_dir), "store_port": 1, "console_port": 2, **changes,
        }  # fmt: skip
        self.socket = self.run_dir / "control.sock"
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "pyxen.domain"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(spec).encode() + b"\n")
        self.process.stdin.close()
        self._last_id = 0
        self._streams: list[Stream] = []
        self._control: Stream | None = None

    def open(self, header: dict[str, Any] | bytes) -> Stream:
        """Connect, as soon as the process listens (nothing tells when that is)."""
        give_up = time.monotonic() + PATIENCE_S
        while True:
            try:
                stream = Stream(self.socket, header)
            except (FileNotFoundError, ConnectionRefusedError):
                if self.process.poll() is not None or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)
            else:
                self._streams.append(stream)
                return stream

    @property
    def control(self) -> Stream:
        if self._control is None:
            self._control = self.open({"stream": "control"})
        return self._control

    def command(self, command: str, /, **arguments: Any) -> dict[str, Any]:
        """The whole answer to a command; events in between are lost."""
        self._last_id += 1
        self.control.send(
            json.dumps({"id": self._last_id, "cmd": command, **arguments}).encode() + b"\n"
        )
        while (message := self.control.line()).get("id") != self._last_id:
            pass
        return message

    def ok(self, command: str, /, **arguments: Any) -> dict[str, Any]:
        answer = self.command(command, **arguments)
        assert "ok" in answer, answer
        result: dict[str, Any] = answer["ok"]
        return result

    def event(self, kind: str) -> dict[str, Any]:
        """The next event of this kind; others are lost."""
        while (message := self.control.line()).get("event") != kind:
            pass
        return message

    def destroy(self) -> int:
        """End the domain; the exit code."""
        self.ok("destroy")
        return self.process.wait(PATIENCE_S)

    def close(self) -> None:
        for stream in self._streams:
            stream.close()
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe is not None
            pipe.close()


def drained(sock: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    while data := sock.recv(65536):
        parts.append(data)
    return b"".join(parts)
