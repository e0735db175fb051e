"""The confined process: what it may not do, and a reader that trusts nothing it says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pyxen.bootloader import reader
from pyxen.bootloader.entry import File
from pyxen.bootloader.export import open_disk
from pyxen.bootloader.frames import DATA, ERROR, HEADER, JSON
from pyxen.bootloader.reader import ImageReader
from pyxen.errors import UserError

ESCAPES = {
    "read a file": "open('/etc/passwd').read()",
    "write a file": "open('/tmp/escaped', 'w').write('x')",
    "list a directory": "os.listdir('/etc')",
    "start a program": "os.execv('/bin/true', ['true'])",
    "connect": "socket.socket().connect(('127.0.0.1', PORT))",
    "allocate": "bytearray(2 << 30)",
}


@pytest.mark.parametrize("what", ESCAPES)
def test_a_confined_process_cannot(what: str) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        code = ESCAPES[what].replace("PORT", str(server.getsockname()[1]))
        script = (
            "import os, socket\n"
            "from pyxen.bootloader.sandbox import confine\n"
            f"confine()\ntry:\n    {code}\n"
            "except (OSError, MemoryError):\n    print('refused')\nelse:\n    print('done')"
        )
        ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert ran.stdout == "refused\n", ran.stderr


def test_a_confined_process_has_no_rights() -> None:
    script = (
        "from pyxen.bootloader.sandbox import confine\nstatus = open('/proc/self/status')\n"
        "confine()\nstatus.seek(0)\nprint(status.read())"
    )
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    fields = dict(line.split(":\t", 1) for line in ran.stdout.splitlines() if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    for kind in ("CapPrm", "CapEff", "CapBnd"):
        assert int(fields[kind], 16) == 0
    assert "0" not in fields["Uid"].split()


def said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes) -> ImageReader:
    """A reader whose worker has been taken over and says `data`."""
    answer, script = tmp_path / "answer", tmp_path / "worker"
    answer.write_bytes(data)
    script.write_text(f"#!/bin/sh\nread line\ncat {answer}\n")
    script.chmod(0o755)
    monkeypatch.setattr(reader.sys, "executable", str(script))
    (tmp_path / "image").write_bytes(b"")
    with open_disk(str(tmp_path / "image")) as source:
        return ImageReader(source)


def frame(kind: bytes, payload: bytes) -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def answer(**changed: Any) -> bytes:
    entry = {"title": "a", "kernel": [0, "/k"], "args": "", "ramdisks": [], "names": ["a"]}
    entry |= {"numbers": "0", "note": ""}
    menu = {"source": "s", "volume": 0, "default": 0, "fallback": [], "timeout_s": 5, "notes": []}
    menu["entries"] = [{**entry, **changed.pop("entry", {})}]
    return frame(JSON, json.dumps({**menu, **changed}).encode())


def test_an_honest_answer(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with said(monkeypatch, tmp_path, answer()) as image:
        assert image.menu().menu.entries[0].kernel == File(0, "/k")


def test_texts_are_made_fit_for_a_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with said(monkeypatch, tmp_path, answer(entry={"title": "\x1b[2Jx"})) as image:
        assert image.menu().menu.entries[0].title == "?[2Jx"
    hostile = frame(ERROR, b"\x1b]0;x\x07")
    with said(monkeypatch, tmp_path, hostile) as image, pytest.raises(UserError) as caught:
        image.menu()
    assert caught.value.message == "?]0;x?"


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"J",
        frame(JSON, b"{"),
        frame(JSON, b"[]"),
        frame(JSON, b"[" * 100_000),
        HEADER.pack(JSON, 1 << 31),
        frame(DATA, b"x"),
        frame(b"Q", b""),
        answer(entries=[]),
        answer(entries=None),
        answer(default=1),
        answer(default=-1),
        answer(default=True),
        answer(fallback=[7]),
        answer(fallback="0"),
        answer(notes=["x"] * 1000),
        answer(entry={"args": "a\nb"}),
        answer(entry={"args": "x" * 20_000}),
        answer(entry={"kernel": [0]}),
        answer(entry={"kernel": [1 << 30, "/k"]}),
        answer(entry={"kernel": [0, "/k\0"]}),
        answer(entry={"ramdisks": [[0, "/r"]] * 100}),
        answer(entry={"title": 5}),
    ],
)
def test_lies_are_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, data: bytes) -> None:
    with said(monkeypatch, tmp_path, data) as image, pytest.raises(UserError) as caught:
        image.menu()
    assert "the process that reads the image failed" in caught.value.message


def test_a_file_without_end_is_cut_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    endless = frame(DATA, bytes(1 << 20)) * 5
    with (
        said(monkeypatch, tmp_path, endless) as image,
        open(os.devnull, "wb") as sink,
        pytest.raises(UserError, match="larger than 4 MiB"),
    ):
        image.copy(File(0, "/k"), sink.fileno(), 4 << 20)


def test_a_worker_that_dies_of_a_signal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with said(monkeypatch, tmp_path, b"") as image:
        image._process.kill()
        with pytest.raises(UserError, match="SIGKILL"):
            image.menu()
