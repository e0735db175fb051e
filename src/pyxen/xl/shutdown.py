"""xl shutdown, reboot: ask guests, and wait for them if that is wanted."""

from __future__ import annotations

from pyxen.errors import UserError
from pyxen.xend.client import Client, result_of
from pyxen.xl.command import Command, Globals, complain, say
from pyxen.xl.list import REASON_CODES


def run_shutdown(command: Command, words: list[str], globals_: Globals) -> int:
    """xl shutdown."""
    return _ask(command, words, "poweroff", "Shutting down")


def run_reboot(command: Command, words: list[str], globals_: Globals) -> int:
    """xl reboot."""
    return _ask(command, words, "reboot", "Rebooting")


def _ask(command: Command, words: list[str], request: str, doing: str) -> int:
    given = command.parse(words)
    everybody = given.has("a")
    if not everybody and not given.arguments:
        raise UserError("You must specify -a or a domain id.")
    with Client.connect() as xend:
        entries = xend.call("list", domains=None if everybody else given.arguments)
        domids = list(dict.fromkeys(entry["domid"] for entry in entries))
        if everybody:
            domids = [domid for domid in domids if domid]
        waits = {}
        if given.has("w"):
            # Asked for first: a guest may be gone before its request is answered.
            waits = {xend.send("wait", domain=domid): domid for domid in domids}
        asked = {xend.send("shutdown", domain=domid, request=request): domid for domid in domids}
        for domid in domids:
            say(f"{doing} domain {domid}")
        if given.has("w") and domids:
            say(f"Waiting for {len(domids)} domains")
        return _collect(xend, asked, waits)


def _collect(xend: Client, asked: dict[int, int], waits: dict[int, int]) -> int:
    """Take in the answers. A guest that refused is not waited for."""
    exit_code = 0
    pending = {**asked, **waits}
    for message in xend.messages() if pending else ():
        number = message.get("id", 0)
        domid = pending.pop(number, None)
        if domid is None:
            continue
        try:
            result = result_of(message)
        except UserError as error:
            complain(error.message, error.hint)
            exit_code = 1
            pending = {n: d for n, d in pending.items() if n in asked or d != domid}
        else:
            if number in waits:
                _tell_end(domid, result["reason"])
        if not pending:
            break
    return exit_code


def _tell_end(domid: int, reason: str | None) -> None:
    if reason is None:
        say(f"Domain {domid} has been destroyed")
    else:
        code = REASON_CODES.get(reason, 0xFF)
        say(f"Domain {domid} has been shut down, reason code {code}")
