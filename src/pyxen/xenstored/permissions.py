"""Who may do what to a node.

Source: docs/misc/xenstore.txt. The first entry of a node's permissions names its owner, who may do
everything, and what domains may do that no later entry mentions. Domid 0 may do everything.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from pyxen.abi.errno import E
from pyxen.errors import XenError

# Plain ints, not an enum: a check is made for every request and every event.
READ = 1
WRITE = 2
OWNER = 4
EVERYTHING = READ | WRITE | OWNER

_LETTERS = {"n": 0, "r": READ, "w": WRITE, "b": READ | WRITE}
_LETTER_OF = {access: letter for letter, access in _LETTERS.items()}


class Permission(NamedTuple):
    """What one domain may do: an access of READ | WRITE."""

    domid: int
    access: int

    def __str__(self) -> str:
        return f"{_LETTER_OF[self.access]}{self.domid}"


Perms: TypeAlias = tuple[Permission, ...]

DOM0_ONLY: Perms = (Permission(0, 0),)


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a request is carried out.

    `target` is the domain whose rights `domid` has besides its own (SET_TARGET).
    """

    domid: int
    target: int | None = None

    @property
    def privileged(self) -> bool:
        """Whether permissions and quotas don't apply."""
        return self.domid == 0


DOM0 = Caller(0)


def parse_permission(text: str) -> Permission:
    """A permission as sent, such as `r5`. Raises XenError(EINVAL)."""
    found = re.fullmatch(r"([nrwb])([0-9]{1,5})", text)
    if found is None or int(found[2]) > 0xFFFF:
        raise XenError(E.INVAL, f"permission {text!r}")
    return Permission(int(found[2]), _LETTERS[found[1]])


def parse_perms(texts: Iterable[str]) -> Perms:
    """All permissions of a node. Raises XenError(EINVAL); at least the owner is needed."""
    perms = tuple(map(parse_permission, texts))
    if not perms:
        raise XenError(E.INVAL, "no owner")
    return perms


def access_of(caller: Caller, perms: Perms) -> int:
    """READ, WRITE and OWNER, as far as the caller has them."""
    domid = caller.domid
    owner, granted_to_all = perms[0]
    if domid == 0 or owner == domid or (caller.target is not None and owner == caller.target):
        return EVERYTHING
    for entry, access in perms[1:]:
        if entry == domid or entry == caller.target:
            return access
    return granted_to_all


def inherited(caller: Caller, parent: Perms) -> Perms:
    """The permissions of a new node: those of its parent, but guests own what they create."""
    if caller.domid == 0:
        return parent
    return (Permission(caller.domid, parent[0].access), *parent[1:])


def without(perms: Perms, domid: int) -> Perms:
    """Permissions with no entry for a domain that is gone; its domid may be used again.

    A node it owned falls to domid 0.
    """
    owner = perms[0] if perms[0].domid != domid else Permission(0, 0)
    return (owner, *(p for p in perms[1:] if p.domid != domid))
