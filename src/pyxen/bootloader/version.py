"""Compare versions as the Boot Loader Specification sorts entries.

Source: the UAPI group's Version Format Specification.
"""

from __future__ import annotations

import re
from functools import cmp_to_key

_PIECE = re.compile(r"[0-9]+|[A-Za-z]+|[~^.-]")
_SEPARATORS = {"~": -4, "": -3, "-": -2, "^": -1, ".": 0}
"""How what comes next decides when the other version has something else there."""


def compare(left: str, right: str) -> int:
    """Negative if `left` is older, 0 if they are equal, positive if it is newer."""
    a, b = _PIECE.findall(left), _PIECE.findall(right)
    for index in range(max(len(a), len(b))):
        one = a[index] if index < len(a) else ""
        other = b[index] if index < len(b) else ""
        order = _compare(one, other)
        if order:
            return order
    return 0


def _compare(one: str, other: str) -> int:
    if one in _SEPARATORS or other in _SEPARATORS:
        # A number or word is newer than the end and than any separator.
        return _SEPARATORS.get(one, 1) - _SEPARATORS.get(other, 1)
    if one.isdigit() != other.isdigit():
        return 1 if one.isdigit() else -1
    if one.isdigit():
        a, b = one.lstrip("0"), other.lstrip("0")
        return len(a) - len(b) or (a > b) - (a < b)
    return (one > other) - (one < other)


def _newer(left: str, right: str) -> int:
    return compare(right, left)


newest_first = cmp_to_key(_newer)
"""A sort key."""
