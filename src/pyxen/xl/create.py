"""xl create: from a configuration file to a running domain."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

from pyxen.errors import UserError
from pyxen.xend.client import Client, XendLost, result_of
from pyxen.xl.command import Command, Globals, Words, WrongUse, complain, say
from pyxen.xl.list import REASON_CODES

NO_FILE = 6
"""What xl exits with when no configuration file is named."""
FAILED = 3
"""What xl exits with when a domain cannot be created."""


def run_create(command: Command, words: list[str], globals_: Globals) -> int:
    """xl create."""
    given = command.parse(words)
    path, overrides = config_words(given)
    quiet = given.has("q")
    config = load_config(path, overrides, quiet=quiet)
    if given.has("n") or globals_.dry_run or given.has("d"):
        print(config.json)
    if given.has("n") or globals_.dry_run:
        return 0
    config.refuse_unsupported()
    config.warn_of_name()
    if given.has("c"):
        return _create_with_console(config.request(), given)
    with Client.connect() as xend:
        with boot_files(config.request(), person=False) as boot:
            made = _create(xend, config.request(), boot, given, paused=given.has("p"))
        if given.has("F"):
            return _stay(xend, made)
    return 0


@contextlib.contextmanager
def boot_files(config: dict[str, Any], *, person: bool) -> Iterator[dict[str, Any] | None]:
    """What the domain's boot loader finds, for as long as it takes to build the domain.

    With a `person` at a terminal it may ask. None: the configuration has no boot loader.
    """
    if not config.get("b_info", {}).get("bootloader"):
        yield None
        return
    from pyxen.bootloader.boot import BOOTLOADER_LOG, booted
    from pyxen.paths import find_paths

    paths = find_paths()
    log = paths.domain_logs(str(config.get("c_info", {}).get("name"))) / BOOTLOADER_LOG
    terminal = person and os.isatty(0) and os.isatty(1)
    keys, screen = (0, 1) if terminal else (None, None)
    with booted(config, paths.run, log, keys=keys, screen=screen) as found:
        yield {"kernel": found.kernel, "ramdisk": found.ramdisk, "cmdline": found.args}


def config_words(given: Words) -> tuple[str, list[str]]:
    """The configuration file and the key=value words among the arguments."""
    path = given.value("f")
    overrides = []
    for word in given.arguments:
        if "=" in word:
            overrides.append(word)
        elif path is None:
            path = word
        else:
            raise WrongUse(f"one configuration file at a time: {path}, and then {word}?")
    if path is None:
        raise UserError("Config file not specified", "xl create FILE", NO_FILE)
    return ("/dev/stdin" if path == "-" else path), overrides


class Config:
    """A configuration that was read: libxl's JSON of it, and what this pyxen cannot do of it."""

    def __init__(self, text: str, unsupported: list[str]) -> None:
        self.json = text
        self._unsupported = unsupported

    def refuse_unsupported(self) -> None:
        """UserError if the domain would not be the one that the file describes."""
        if self._unsupported:
            raise UserError(
                "this configuration needs what pyxen does not have yet",
                "\n".join(self._unsupported),
                FAILED,
            )

    def warn_of_name(self) -> None:
        """A name of digits only is taken for a domid by every other command."""
        name = str(json.loads(self.json).get("c_info", {}).get("name"))
        if name.isdigit():
            complain(f"warning: commands take {name} for a domain's number", "use the domid")

    def request(self) -> dict[str, Any]:
        """What xend is sent: paths are seen from here, so they are made absolute."""
        from pyxen.config.disk import absolute_target

        config: dict[str, Any] = json.loads(self.json)
        build = config.get("b_info", {})
        # With a boot loader, kernel and ramdisk are paths in the guest's disk.
        for key in () if build.get("bootloader") else ("kernel", "ramdisk"):
            if build.get(key):
                build[key] = os.path.abspath(build[key])
        if "/" in build.get("bootloader", ""):
            build["bootloader"] = os.path.abspath(build["bootloader"])
        for disk in config.get("disks", []):
            if disk.get("pdev_path"):
                disk["pdev_path"] = absolute_target(disk["pdev_path"])
        return config


def load_config(path: str, overrides: list[str], *, quiet: bool) -> Config:
    """Read a configuration file. UserError with xl's exit code."""
    from pyxen.config.json_output import to_xl_json
    from pyxen.config.load import load_domain_config
    from pyxen.config.support import unsupported

    if not quiet:
        say(f"Parsing config from {path}")
    config, warnings = load_domain_config(path, overrides)
    for warning in warnings:
        complain(f"warning: {warning}")
    return Config(to_xl_json(config), unsupported(config))


class Progress:
    """Tells a waiting person that something goes on; nobody else."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._begin = time.monotonic()
        self._shown = False

    def tick(self) -> None:
        """A second has passed."""
        if sys.stderr.isatty():
            waited = time.monotonic() - self._begin
            print(f"\r{self._what} … {waited:.0f} s", end="", file=sys.stderr, flush=True)
            self._shown = True

    def done(self) -> None:
        """Leave no trace on the terminal."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def _create(
    xend: Client,
    request: dict[str, Any],
    boot: dict[str, Any] | None,
    given: Words,
    *,
    paused: bool,
) -> Any:
    name = request.get("c_info", {}).get("name", "the domain")
    progress = Progress(f"building {name}")
    try:
        return xend.call(
            "create",
            waiting=None if given.has("q") else progress.tick,
            config=request,
            boot=boot,
            paused=paused,
            monitor=not given.has("e"),
        )
    finally:
        progress.done()


def _create_with_console(request: dict[str, Any], given: Words) -> int:
    """-c: the console is attached before the guest's first instruction."""
    from pyxen.xl.console import ESCAPE, REPLAY_ALL, attach, open_console

    with Client.connect() as xend:
        with boot_files(request, person=True) as boot:
            made = _create(xend, request, boot, given, paused=True)
        where = xend.call("console", domain=made["domid"])
        with open_console(where["socket"], REPLAY_ALL) as sock:
            end = _End(xend, made["domid"])
            if not given.has("p"):
                xend.send("unpause", domain=made["domid"])
            if not attach(sock, ESCAPE, end, end.arrived):
                return 0
        return end.tell(made["name"])


class _End:
    """How the domain ended, once xend has told; should xend go away, the next one is asked."""

    def __init__(self, xend: Client, domid: int) -> None:
        self._xend = xend
        self._domid = domid
        self._wait = xend.send("wait", domain=domid)
        self._result: dict[str, Any] | None = None

    def fileno(self) -> int:
        """Readable when xend has something to tell."""
        return self._xend.fileno()

    def arrived(self) -> bool:
        """Take what xend tells; whether the guest, still there, will say no more."""
        try:
            for message in self._xend.messages():
                if message.get("id") == self._wait:
                    self._result = result_of(message)
                    return not self._result["destroyed"]
                result_of(message)
                if not self._xend.has_message():
                    break
        except XendLost:
            self._xend = Client.connect()
            self._wait = self._xend.send("wait", domain=self._domid)
        return False

    def tell(self, name: str) -> int:
        """Say what the user should know of the end; the exit code."""
        while self._result is None:
            self.arrived()
        reason = self._result["reason"]
        successor = self._result["successor"]
        if successor is not None:
            say(f"xl: {name} runs on as domain {successor}: xl console {name}")
        if reason not in ("crash", "watchdog"):
            return 0
        complain(f"{name} crashed" if reason == "crash" else f"{name}: its watchdog ran out")
        report = self._result["report"]
        if report:
            _show_report(report)
        return 1


def _show_report(path: str) -> None:
    try:
        with open(path, errors="replace") as report:
            say(report.read())
    except OSError as error:
        complain(f"its report cannot be read: {error}")
    say(f"This report is in {path}")


def _stay(xend: Client, made: dict[str, Any]) -> int:
    """-F: stay until the domain is gone, through its restarts."""
    domid: int | None = made["domid"]
    say(f"Waiting for domain {made['name']} (domid {domid}) to die [pid {os.getpid()}]")
    while domid is not None:
        end = xend.call("wait", domain=domid)
        if end["reason"] is None:
            say(f"Domain {domid} has been destroyed")
        else:
            code = REASON_CODES.get(end["reason"], 0xFF)
            say(f"Domain {domid} has shut down, reason code {code} 0x{code:x}")
        domid = end["successor"]
    say("Done. Exiting now")
    return 0
