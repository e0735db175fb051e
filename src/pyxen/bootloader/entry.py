"""What a boot loader's configuration comes to: a menu of kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol


@dataclass(frozen=True)
class File:
    """A file as a configuration names it: which volume it should be on, and its path there."""

    volume: int
    path: str


@dataclass
class Entry:
    """Something that can be booted.

    `names` is what a default may call it: its title or its id, alone or after those of its
    submenus, joined with `>`; `numbers` is the same by place.
    """

    title: str
    kernel: File | None = None
    args: str = ""
    ramdisks: list[File] = field(default_factory=list)
    names: frozenset[str] = frozenset()
    numbers: str = ""
    note: str = ""
    """Why there is no kernel."""


@dataclass
class Menu:
    """A whole configuration. `timeout_s` is None if it waits for ever."""

    source: str
    volume: int
    entries: list[Entry] = field(default_factory=list)
    default: str = "0"
    fallback: list[str] = field(default_factory=list)
    timeout_s: float | None = 5.0
    notes: list[str] = field(default_factory=list)

    def find(self, word: str) -> int | None:
        """The place of the entry that a word means: number, title, id, or a path of these.

        Numbers count all entries without regard to submenus, as pygrub's do; GRUB's own `1>2`
        means what GRUB means by it.
        """
        for matches in (self._by_name, self._by_numbers, self._by_place):
            index = matches(word)
            if index is not None:
                return index
        # The way through the submenus may be given in titles by one, in ids by another.
        last = word.rpartition(">")[2].strip()
        return self._by_name(last) if last != word else None

    def _by_name(self, word: str) -> int | None:
        return next((i for i, entry in enumerate(self.entries) if word in entry.names), None)

    def _by_numbers(self, word: str) -> int | None:
        wanted = ">".join(piece.strip() for piece in word.split(">"))
        for index, entry in enumerate(self.entries):
            # A submenu's number alone means its first entry.
            if entry.numbers == wanted or entry.numbers.startswith(f"{wanted}>"):
                return index
        return None

    def _by_place(self, word: str) -> int | None:
        if word.isascii() and word.isdigit() and len(word) < 6 and int(word) < len(self.entries):
            return int(word)
        return None


class Disks(Protocol):
    """What configurations ask of the volumes that were found; volumes have numbers."""

    def device(self, name: str) -> int | None:
        """The volume that a device's name of GRUB's means: hd0,gpt2."""

    def search(self, kind: str, value: str) -> int | None:
        """The volume with this `uuid`, `label` or `file`."""

    def read(self, volume: int, path: str) -> str | None:
        """A configuration's text; None if it is not there."""

    def names(self, volume: int, path: str) -> Sequence[str]:
        """What a directory holds, sorted."""
