"""What the parts of a domain's configuration have in common.

A record is a dataclass whose fields are named and ordered as in libxl's description of the same
structure (tools/libs/light/libxl_types.idl), because that is the JSON which xl prints and which
other tools read. A field that equals its default is not printed.
"""

from dataclasses import dataclass
from typing import ClassVar

Defbool = bool | None
"""libxl's defbool: True, False, or None for "the tool stack decides". JSON: "True", "False"."""

Bitmap = list[int]
"""A set of CPUs, nodes or flags: the numbers of its members, ascending."""


@dataclass
class Record:
    """Base of all records."""

    union_key: ClassVar[str] = ""
    """JSON key of a member of a keyed union ("type.pv"); empty for every other record."""


def field_order(order: tuple[str, ...]) -> dict[str, object]:
    """Return metadata for a dict field printed as if its entries were fields, in this order."""
    return {"order": order}


def choose(text: str, choices: tuple[str, ...]) -> str | None:
    """Return the choice that `text` names, ignoring case as libxl does, or None."""
    folded = text.lower()
    return folded if folded in choices else None
