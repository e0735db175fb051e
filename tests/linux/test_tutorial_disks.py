"""docs/tutorial-disks.md, word for word: each part's commands are run, and print what is shown."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from pyxen.image.bootstrap import Bootstrap
from pyxen.image.debian import PACKAGES, SUITE
from tests.linux.host import Host, Session, wait_until

DOCUMENT = Path(__file__).parents[2] / "docs/tutorial-disks.md"
BOOT_S = 300.0
COMMAND_S = 120.0
BUILD_S = 1500.0
PROMPT = re.compile(r"(\$|demo:\S*#|root@debian:\S*#) (.+)")
CONSOLES = ("xl create -c", "xl console")
ESCAPES = re.compile(rb"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass
class Command:
    """A line of the document that is typed, and what is shown below it."""

    prompt: str
    words: str
    shown: list[str] = field(default_factory=list)


def commands(part: str) -> list[Command]:
    """The commands of one part, in order."""
    (text,) = re.findall(
        rf"^## {re.escape(part)}\n(.*?)(?=^## |\Z)", DOCUMENT.read_text(), re.M | re.S
    )
    found: list[Command] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.M | re.S):
        for line in block.splitlines():
            if typed := PROMPT.fullmatch(line):
                found.append(Command(*typed.groups()))
            else:
                found[-1].shown.append(line)
    return found


def check(command: Command, printed: str) -> None:
    """Every line that is shown was printed, in this order; `…` stands for anything."""
    lines = iter(line.rstrip() for line in printed.splitlines())
    for shown in command.shown:
        if shown == "…":
            continue
        pattern = re.compile(".*".join(map(re.escape, shown.rstrip().split("…"))))
        assert any(pattern.fullmatch(line) for line in lines), (command.words, shown, printed)


class Reader:
    """Somebody who types what the document says, in a directory of their own."""

    def __init__(self, host: Host, directory: Path) -> None:
        self._host = host
        self._directory = directory
        self._environment = {
            **host.environment,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}:/usr/sbin:/sbin",
        }
        self._console: Session | None = None

    def follow(self, part: str) -> None:
        """Type all commands of a part."""
        for command in commands(part):
            if command.prompt == "$":
                self._leave()
                self._at_the_host(command)
            else:
                self._in_the_guest(command)
        self._leave()

    def _at_the_host(self, command: Command) -> None:
        if command.words.startswith(CONSOLES):
            self._console = self._host.session(
                *[
                    str(self._directory / word) if word.endswith(".cfg") else word
                    for word in shlex.split(command.words)[1:]
                ]
            )
            if command.words.startswith("xl console"):
                self._console.type("\n")
            return
        done = subprocess.run(
            ["sh", "-c", command.words],
            cwd=self._directory,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_S,
            check=False,
        )
        assert done.returncode == 0, (command.words, done.stderr)
        check(command, done.stdout + done.stderr)

    def _in_the_guest(self, command: Command) -> None:
        console = self._console
        assert console is not None, "no console is open"
        prompt = f"{command.prompt} ".encode()
        console.expect(prompt, BOOT_S)
        console.type(command.words + "\n")
        if command.words == "poweroff":
            assert console.end(BOOT_S) == 0
            self._console = None
            wait_until(lambda: self._host.list() == [])
            return
        # A marker, and not the prompt, which stays unread for the next command.
        console.type("echo the e''nd\n")
        printed = console.expect(b"the end\r\n", COMMAND_S)
        check(command, ESCAPES.sub(b"", printed).decode(errors="replace").replace("\r", ""))

    def _leave(self) -> None:
        if self._console is not None:
            assert self._console.leave() == 0
            self._console = None


@pytest.fixture
def reader(host: Host, tmp_path: Path) -> Iterator[Reader]:
    directory = tmp_path / "here"
    directory.mkdir()
    yield Reader(host, directory)
    shutil.rmtree(directory)  # the images are large
    left = {"run/xend.sock", "run/xenstored.sock"}
    assert host.leftovers() <= left


def test_no_part_is_left_out() -> None:
    parts = re.findall(r"^## (.*)$", DOCUMENT.read_text(), re.M)
    assert parts == [RUNNING, OWN_DISK, DEBIAN]
    assert all(commands(part) for part in parts)


RUNNING = "1. A disk for a guest that runs"
OWN_DISK = "2. A guest that starts from its own disk"
DEBIAN = "3. Debian"


@pytest.mark.parametrize("part", [RUNNING, OWN_DISK])
def test_part(reader: Reader, part: str) -> None:
    reader.follow(part)


@pytest.mark.timeout(BUILD_S + 2 * BOOT_S)
def test_debian(reader: Reader) -> None:
    """Runs if Debian is in the cache, or PYXEN_TEST_DEBIAN=1 says that it may take ten minutes."""
    if (
        not Bootstrap(SUITE, PACKAGES).path().is_file()
        and os.environ.get("PYXEN_TEST_DEBIAN") != "1"
    ):
        pytest.skip("Debian is not in the cache: PYXEN_TEST_DEBIAN=1 builds it")
    reader.follow(DEBIAN)
