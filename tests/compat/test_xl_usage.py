"""Each command that `xl help` lists says how it is used."""

import re

import pytest

from pyxen.xl.main import main
from pyxen.xl.table import COMMANDS

HIDDEN = {"create": {"i"}}
"""Letters of our own for long options that have none."""

WORKING = [command for command in COMMANDS.values() if command.where]


def test_help_lists_what_works(capsys):
    assert main(["help"]) == 0
    listed = re.findall(r"^ (\S+) +\S", capsys.readouterr().out, re.MULTILINE)
    assert listed == [command.name for command in WORKING]


@pytest.mark.parametrize("command", WORKING, ids=[command.name for command in WORKING])
def test_usage(command, capsys):
    assert main(["help", command.name]) == 0
    shown = capsys.readouterr().out
    usage, _, summary = shown.partition("\n\n")
    assert re.fullmatch(rf"Usage: xl \[-vtTf?N?\] {command.name}( \S.*)?", usage)
    assert summary.startswith(f"{command.summary}.")
    assert main([command.name, "--help"]) == 0
    assert capsys.readouterr().out == shown, "--help shows the same"


@pytest.mark.parametrize("command", WORKING, ids=[command.name for command in WORKING])
def test_every_option_is_explained(command):
    """What getopt takes is what the help shows, and the other way round."""
    shown = " ".join(written for written, _ in command.options)
    letters = {letter for letter in command.short if letter != ":"}
    explained = set(re.findall(r"(?<![\w-])-(\w)\b", shown)) - {"h"}
    assert explained == letters - HIDDEN.get(command.name, set())
    long = set(re.findall(r"--([\w-]+)", shown)) - {"help"}
    assert long <= {name.rstrip("=") for name in command.long}


@pytest.mark.parametrize(
    "command",
    [command for command in WORKING if command.arguments],
    ids=[command.name for command in WORKING if command.arguments],
)
def test_without_its_arguments_it_shows_its_usage(command, capsys):
    assert main([command.name]) == 2
    said = capsys.readouterr()
    assert f"requires at least {command.arguments} argument" in said.err
    assert said.out.startswith("Usage: xl ")
