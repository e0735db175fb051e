"""`xl`: find the command, run it, turn what went wrong into words and an exit code."""

from __future__ import annotations

import os
import sys
from difflib import get_close_matches
from getopt import GetoptError, getopt
from importlib import import_module

from pyxen.errors import UserError
from pyxen.xl.command import Command, Globals, HelpWanted, WrongUse, complain
from pyxen.xl.table import COMMANDS, matches

GLOBAL_USAGE = "Usage xl [-vfNtT] <subcommand> [args]"


def main(arguments: list[str] | None = None) -> int:
    """Run xl with these arguments (the process's own by default); returns the exit code."""
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        complain(error.message, error.hint)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # Whoever read our output has left. Python would complain again at exit: give it a sink.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    finally:
        _flush()


def _flush() -> None:
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _run(arguments: list[str]) -> int:
    try:
        options, rest = getopt(arguments, "vftTN")
    except GetoptError as error:
        complain(f"unknown global option: {error.msg}", GLOBAL_USAGE)
        return 1
    letters = [letter for letter, _ in options]
    globals_ = Globals(letters.count("-v"), "-f" in letters, "-N" in letters)
    if not rest:
        _show_help([])
        return 1
    word, *words = rest
    if word == "help":
        return _show_help(words)
    command = _find(word)
    if globals_.dry_run and not command.dry_run:
        raise UserError(f"{command.name} has no dry run (-N)")
    return _run_command(command, words, globals_)


def _find(word: str) -> Command:
    """The command that a word means. UserError that names the likely ones."""
    found = matches(word)
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(command.name for command in found)
        raise UserError(f"command {word!r} is ambiguous", f"it may be {names}")
    near = get_close_matches(word, list(COMMANDS), 2)
    hint = f"did you mean {' or '.join(near)}?" if near else "`xl help` lists the commands"
    raise UserError(f"command {word!r} is not implemented", hint)


def _run_command(command: Command, words: list[str], globals_: Globals) -> int:
    if not command.where:
        raise UserError(f"{command.name} is not supported yet", "`xl help` lists what is")
    module = import_module(f"pyxen.xl.{command.where}")
    run = getattr(module, f"run_{command.name.replace('-', '_')}")
    try:
        return int(run(command, words, globals_))
    except HelpWanted:
        print(command.help())
        return 0
    except WrongUse as error:
        if str(error):
            complain(str(error))
        print(command.help())
        return error.exit_code


def _show_help(words: list[str]) -> int:
    """`xl help [COMMAND]`."""
    if not words or words[0] == "help":
        print(f"{GLOBAL_USAGE}\n\nxl full list of subcommands:\n")
        for command in COMMANDS.values():
            if command.where:
                print(f" {command.name:<19} {command.summary}")
        return 0
    found = matches(words[0])
    if len(found) != 1:
        print(f'command "{words[0]}" not implemented')
    elif not found[0].where:
        print(f"Usage: xl {found[0].name}\n\nNot supported yet.")
    else:
        print(found[0].help())
    return 0
