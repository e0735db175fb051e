"""What a command of xl is, and how its words are taken apart."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from getopt import GetoptError, gnu_getopt
from types import MappingProxyType
from typing import NamedTuple

from pyxen.errors import UserError

USAGE_ERROR = 2
"""What xl exits with for a bad option or a missing argument."""


class Command(NamedTuple):
    """One command of xl. `where` is the module below pyxen.xl that has it, `` if there is none yet.

    options: (how it is written, what it does), for the help. short, long: for getopt; a long option
    stands for the short one of `long`. modifies, dry_run: whether the global -f and -N mean
    something to it. arguments: how many it needs. own: Xen does not have it. more: a text below the
    options.
    """

    name: str
    where: str = ""
    usage: str = ""
    summary: str = ""
    options: tuple[tuple[str, str], ...] = ()
    short: str = ""
    long: Mapping[str, str] = MappingProxyType({})
    modifies: bool = False
    dry_run: bool = False
    arguments: int = 0
    own: bool = False
    more: str = ""

    def help(self) -> str:
        """The text of `xl help NAME`."""
        flags = f"{'f' if self.modifies else ''}{'N' if self.dry_run else ''}"
        usage = f"Usage: xl [-vtT{flags}] {self.name} {self.usage}".rstrip()
        text = f"{usage}\n\n{self.summary}.\n"
        if self.options:
            width = max(len(written) for written, _ in self.options) + 2
            lines = [f"{written:{width}}{does}" for written, does in self.options]
            text += "\nOptions:\n\n" + "\n".join(lines) + "\n"
        if self.more:
            text += f"\n{self.more}\n"
        return text

    def parse(self, words: list[str]) -> Words:
        """Take the words behind the command apart. HelpWanted, UserError."""
        long = {"help": "h", **self.long}
        try:
            found, arguments = gnu_getopt(words, f"h{self.short}", list(long))
        except GetoptError as error:
            raise UserError(
                f"{self.name}: {error.msg}", f"see `xl help {self.name}`", USAGE_ERROR
            ) from None
        by_long = {key.rstrip("="): value for key, value in long.items()}
        options: dict[str, list[str]] = {}
        for option, value in found:
            bare = option.lstrip("-")
            options.setdefault(by_long.get(bare, bare), []).append(value)
        if "h" in options:
            raise HelpWanted
        if len(arguments) < self.arguments:
            plural = "s" if self.arguments > 1 else ""
            raise WrongUse(f"'xl {self.name}' requires at least {self.arguments} argument{plural}.")
        return Words(options, arguments)


class Words(NamedTuple):
    """Options by their letter, each with its values ('' for a flag), and the arguments."""

    options: dict[str, list[str]]
    arguments: list[str]

    def has(self, letter: str) -> bool:
        """Whether the option was given."""
        return letter in self.options

    def value(self, letter: str) -> str | None:
        """The option's last value, if it was given."""
        values = self.options.get(letter)
        return values[-1] if values else None


class HelpWanted(Exception):
    """-h or --help was given."""


class WrongUse(Exception):
    """The words make no sense: the message, then the command's help, exit 2."""

    def __init__(self, message: str, exit_code: int = USAGE_ERROR) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Globals(NamedTuple):
    """The options before the command: -v (counted), -f, -N, -t, -T."""

    verbose: int = 0
    force: bool = False
    dry_run: bool = False


def complain(message: str, hint: str = "") -> None:
    """Tell the user what is wrong, and what to do about it."""
    print(f"xl: {message}", file=sys.stderr)
    if hint:
        print("\n".join(f"    {line}" for line in hint.splitlines()), file=sys.stderr)


def say(message: str) -> None:
    """Tell the user what is going on; not part of the output."""
    print(message, file=sys.stderr, flush=True)
