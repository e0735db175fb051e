"""xl config-update: another configuration for the next start of a running domain."""

from __future__ import annotations

from pyxen.xend.client import Client
from pyxen.xl.command import Command, Globals, WrongUse, say
from pyxen.xl.create import config_words, load_config


def run_config_update(command: Command, words: list[str], globals_: Globals) -> int:
    """xl config-update."""
    given = command.parse(words)
    if not given.arguments:
        raise WrongUse("config-update requires a domain argument", exit_code=1)
    domain, *rest = given.arguments
    with Client.connect() as xend:
        domid = xend.call("list", domains=[domain])[0]["domid"]
        config = load_config(*config_words(given._replace(arguments=rest)), quiet=True)
        if given.has("d") or globals_.dry_run:
            print(config.json)
        if globals_.dry_run:
            return 0
        config.refuse_unsupported()
        xend.call("config_update", domain=domid, config=config.request())
        say(f"domain {domid} gets this configuration when it is started again")
    return 0
