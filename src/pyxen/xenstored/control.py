"""CONTROL: commands to the daemon itself, for xenstore-control."""

import logging
from typing import TYPE_CHECKING

from pyxen.abi.errno import E
from pyxen.errors import XenError

if TYPE_CHECKING:
    from pyxen.xenstored.daemon import Xenstore

log = logging.getLogger(__name__)

_COMMANDS = (
    ("check", ""),
    ("help", ""),
    ("log", "on|off"),
    ("print", "<string>"),
    ("quota", "[set <name> <val>|<domid>]"),
)


def control(xenstore: "Xenstore", arguments: tuple[str, ...]) -> bytes:
    """Carry out a command; the answer's payload. Raises XenError(EINVAL), ENOENT, EIO."""
    match arguments:
        case ("check",):
            xenstore.store.check()
        case ("help",):
            return _text("".join(f"{name}\t{usage}\n" for name, usage in _COMMANDS))
        case ("log", ("on" | "off") as state):
            logging.getLogger("pyxen.xenstored").setLevel(
                logging.DEBUG if state == "on" else logging.NOTSET
            )
        case ("print", line):
            log.info("control: %s", line)
        case ("quota",):
            lines = [f"{n:<17}: {v:8} {meaning}\n" for n, v, meaning in xenstore.quotas.items()]
            return _text("Quota settings:\n" + "".join(lines))
        case ("quota", "set", name, value) if value.isdecimal() and len(value) < 10:
            xenstore.set_quota(name, int(value))
        case ("quota", domid) if domid.isdecimal() and len(domid) < 6:
            return _text(_usage(xenstore, int(domid)))
        case _:
            raise XenError(E.INVAL, " ".join(arguments))
    return b"OK\0"


def _usage(xenstore: "Xenstore", domid: int) -> str:
    connection = xenstore.connection_of(domid)
    if connection is None:
        raise XenError(E.NOENT, f"domid {domid}")
    counts = {
        "nodes": xenstore.store.owned.get(domid, 0),
        "watches": xenstore.watches.count(connection),
        "transactions": len(connection.transactions),
        "outstanding": connection.outbox.waiting,
    }
    return f"Domain {domid}:\n" + "".join(f"{n:<16}: {v:8}\n" for n, v in counts.items())


def _text(text: str) -> bytes:
    return text.encode("latin-1") + b"\0"
