"""xl pause, unpause, destroy."""

from __future__ import annotations

from pyxen.errors import UserError
from pyxen.xend.client import Client
from pyxen.xl.command import Command, Globals, complain


def run_pause(command: Command, words: list[str], globals_: Globals) -> int:
    """xl pause."""
    given = command.parse(words)
    with Client.connect() as xend:
        xend.call("pause", domain=given.arguments[0])
    return 0


def run_unpause(command: Command, words: list[str], globals_: Globals) -> int:
    """xl unpause. A domain that is not paused is worth a word, but no failure, as in Xen."""
    given = command.parse(words)
    with Client.connect() as xend:
        entry = xend.call("list", domains=[given.arguments[0]])[0]
        try:
            xend.call("unpause", domain=entry["domid"])
        except UserError as error:
            if entry["domid"] == 0 or entry["state"].get("paused"):
                raise
            complain(error.message, error.hint)
    return 0


def run_destroy(command: Command, words: list[str], globals_: Globals) -> int:
    """xl destroy."""
    given = command.parse(words)
    with Client.connect() as xend:
        xend.call("destroy", domain=given.arguments[0])
    return 0
