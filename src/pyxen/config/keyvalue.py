"""Device specifications of the form "key=value,key=value,flag", described by tables."""

from collections.abc import Callable, Iterator, Mapping
from os import urandom
from typing import NamedTuple

from pyxen.config.number import leading, whole
from pyxen.config.record import Record, choose
from pyxen.config.report import nearest
from pyxen.errors import UserError

U32 = (1 << 32) - 1

Convert = Callable[[str], object]
"""Turns a value's text into what is stored, or raises ValueError with what it must be."""


class Entry(NamedTuple):
    """One key of a specification: the attribute it sets and how its text is understood."""

    attribute: str
    convert: Convert


Table = Mapping[str, Entry]


def words(spec: str) -> Iterator[str]:
    """Yield the comma-separated words of a specification; empty ones do not count."""
    for word in spec.split(","):
        word = word.lstrip(" ")
        if word:
            yield word


def apply(record: Record, table: Table, word: str, what: str) -> None:
    """Set in `record` what the word "key=value" says.

    Raises: UserError (exit code 1) naming the key and the nearest known one.
    """
    key, equals, text = word.partition("=")
    entry = table.get(key)
    if entry is None or not equals:
        raise unknown(word, tuple(table), what)
    try:
        value = entry.convert(text)
    except ValueError as error:
        raise UserError(f"{what}: {key}={text}: it must be {error}", "", 1) from error
    setattr(record, entry.attribute, value)


def apply_all(record: Record, table: Table, spec: str, what: str) -> None:
    """Set in `record` everything that a specification says."""
    for word in words(spec):
        apply(record, table, word, what)


def unknown(word: str, known: tuple[str, ...], what: str) -> UserError:
    """Return the error for a word whose key is not known."""
    key, equals, _ = word.partition("=")
    if key in known and not equals:
        return UserError(f"{what}: {key!r} needs a value", f"write {key}=…", 1)
    hint = f"the keys are {', '.join(known)}" if len(known) <= 24 else ""
    return UserError(f"{what}: there is no key {key!r}{nearest(key, known)}", hint, 1)


def text(value: str) -> str:
    """Keep the text."""
    return value


def unsigned(value: str) -> int:
    """Read a decimal number of at most 32 bits."""
    number = whole(value, 10)
    if number is None or not 0 <= number <= U32:
        raise ValueError("a number")
    return number


def loose_unsigned(value: str) -> int:
    """Read a number as C does: 0x for hexadecimal, 0 for octal, 0 for what is no number."""
    return leading(value) & U32


def loose_int(value: str) -> int:
    """Read a decimal number as C's atoi does: 0 for what is no number."""
    number = leading(value, 10) & U32
    return number - (1 << 32) if number >> 31 else number


def yes(value: str) -> bool:
    """Read a number as a flag: 0, or what is no number, is no."""
    return leading(value) != 0


def one_of(**choices: str) -> Convert:
    """Accept the given words, each for the value it stands for; case counts."""

    def convert(value: str) -> str:
        if value not in choices:
            raise ValueError(" or ".join(choices))
        return choices[value]

    return convert


def any_case(*choices: str) -> Convert:
    """Accept the given words in any case."""

    def convert(value: str) -> str:
        chosen = choose(value, choices)
        if chosen is None:
            raise ValueError(" or ".join(choices))
        return chosen

    return convert


def uuid(value: str) -> str:
    """Read a UUID of 36 characters into lower case."""
    groups = value.split("-")
    if [len(group) for group in groups] != [8, 4, 4, 4, 12]:
        raise ValueError("a UUID such as 12345678-1234-1234-1234-123456789abc")
    if any(c not in "0123456789abcdefABCDEF" for c in "".join(groups)):
        raise ValueError("a UUID, whose digits are hexadecimal")
    return value.lower()


def random_uuid() -> str:
    """Return a fresh UUID of version 4 (RFC 9562). The uuid module would cost 2 ms of import."""
    number = int.from_bytes(urandom(16), "big")
    number = number & ~(0xF << 76) & ~(0x3 << 62) | 0x4 << 76 | 0x2 << 62
    digits = f"{number:032x}"
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))
