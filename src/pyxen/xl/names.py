"""xl domid, domname, rename."""

from __future__ import annotations

from pyxen.errors import UserError
from pyxen.xend.client import Client
from pyxen.xl.command import Command, Globals


def run_domid(command: Command, words: list[str], globals_: Globals) -> int:
    """xl domid."""
    given = command.parse(words)
    with Client.connect() as xend:
        print(xend.call("domid", name=given.arguments[0])["domid"])
    return 0


def run_domname(command: Command, words: list[str], globals_: Globals) -> int:
    """xl domname."""
    word = command.parse(words).arguments[0]
    if not (word.isascii() and word.isdigit()):
        raise UserError("Invalid domain id.", f"{word!r} is no number; `xl domid` takes a name")
    with Client.connect() as xend:
        try:
            print(xend.call("list", domains=[word])[0]["name"])
        except UserError:
            raise UserError(
                f"Can't get domain name of domain id '{word}', maybe this domain does not exist."
            ) from None
    return 0


def run_rename(command: Command, words: list[str], globals_: Globals) -> int:
    """xl rename."""
    given = command.parse(words)
    domain, name = given.arguments[:2]
    with Client.connect() as xend:
        xend.call("rename", domain=domain, name=name)
    return 0
