"""The lexer and the grammar: what is accepted, and what an error says."""

import os
from pathlib import Path

import pytest

from pyxen.config.lexer import unquote
from pyxen.config.parser import (
    MAX_FILE_BYTES,
    MAX_LIST_DEPTH,
    MAX_LIST_ITEMS,
    Atom,
    ListValue,
    Value,
    parse_file,
    parse_into,
    parse_text,
)
from pyxen.errors import UserError


def plain(value: Value) -> object:
    """A value without its places."""
    return value.text if isinstance(value, Atom) else [plain(item) for item in value.items]


def parsed(text: str) -> dict[str, object]:
    return {name: plain(s.value) for name, s in parse_text(text, "f").settings.items()}


def refusal(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_text(text, "demo.cfg")
    assert caught.value.exit_code == 1
    return caught.value


def test_values() -> None:
    text = """
    name = "demo"          # a comment
    memory=256; vcpus = 0x2
    disk = [ 'a', # first

             "b", [1, []], ]
    empty = []
    """
    assert parsed(text) == {
        "name": "demo",
        "memory": "256",
        "vcpus": "0x2",
        "disk": ["a", "b", ["1", []]],
        "empty": [],
    }


def test_places_are_those_of_the_source() -> None:
    settings = parse_text('a=1\n  b = [ "x",\n "y" ]', "f").settings
    assert settings["b"].place == ("f", 2, 3)
    value = settings["b"].value
    assert isinstance(value, ListValue)
    assert [item.place[1:] for item in value.items] == [(2, 9), (3, 2)]


@pytest.mark.parametrize("end", ["\n", "\r\n", ""])
def test_line_ends(end: str) -> None:
    assert parsed(f'a="x"{end or ";"}b="y"{end}') == {"a": "x", "b": "y"}


def test_comment_may_end_the_file() -> None:
    assert parsed("a=1 # that is all") == {"a": "1"}


def test_last_assignment_counts() -> None:
    assert parsed('a=1\na="2"') == {"a": "2"}


def test_append() -> None:
    assert parsed('a="x"\na+="y"\nb+=["1"]\nb+=["2"]') == {"a": "xy", "b": ["1", "2"]}


def test_append_of_another_kind_is_refused() -> None:
    error = refusal('a="x"\na+=["y"]')
    assert "demo.cfg:2:1" in error.message


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        (r'"a\tb\n"', "a\tb\n"),
        (r'"\\ \" \'"', "\\ \" '"),
        (r"'\x41\x4a'", "AJ"),
        (r"'\101'", "A"),
        (r"'\xc3\xa4'", "\udcc3\udca4"),
        (r"'\a\b\f\r\v'", "\a\b\f\r\v"),
    ],
)
def test_escapes(literal: str, value: str) -> None:
    assert unquote(literal) == value


@pytest.mark.parametrize("literal", [r'"\q"', r'"\x"', r'"\xg"', r'"\0"', r'"\x00"'])
def test_bad_escapes(literal: str) -> None:
    error = refusal(f"a={literal}")
    assert "demo.cfg:1:3" in error.message


@pytest.mark.parametrize(
    ("text", "where", "hint"),
    [
        ("localtime = True", "1:13", "1 for yes"),
        ('on-crash = "destroy"', "1:3", "underscores"),
        ("memory = -5", "1:10", "negative"),
        ("memory = 256M", "1:13", "no unit"),
        ('a = "x" + "y"', "1:9", "not Python"),
        ("if a: b=1", "1:5", "not Python"),
        ("a = “x”", "1:5", "plain quotes"),
        ("Memory = 5", "1:1", "lower case"),
        ('a = "x', "1:5", "same line"),
        ("a=1\0", "1:4", "text file"),
        ("\nname = abc", "2:8", 'in quotes: "abc"'),
        ("memory =\n", "1:9", "same line"),
        ("memory\n= 5", "1:7", "on one line"),
        ('a = "x" b = "y"', "1:9", "own line"),
        ("a = [1\nb = 2", "2:1", "goes on until its ']'"),
        ("= 5", "1:1", "name of a setting"),
        ("a = [1,,2]", "1:8", ""),
        ("a = [,]", "1:6", ""),
        ("a = 1]", "1:6", ""),
        ("a == 1", "1:4", ""),
    ],
)
def test_errors_say_where_and_what_to_do(text: str, where: str, hint: str) -> None:
    error = refusal(text)
    assert f"demo.cfg:{where}:" in error.message
    assert hint in error.hint


def test_all_lexical_errors_are_named() -> None:
    error = refusal("a=%\nb=1\nc=$\n")
    assert "demo.cfg:1:3" in error.message
    assert "demo.cfg:3:3" in error.message


def test_nesting_is_bounded() -> None:
    deepest = "[" * MAX_LIST_DEPTH + "]" * MAX_LIST_DEPTH
    assert parsed(f"a={deepest}")
    assert "nested deeper" in refusal(f"a=[{deepest}]").message


def test_lists_are_bounded() -> None:
    most = "1," * MAX_LIST_ITEMS
    assert parsed(f"a=[{most}]")
    assert "more than" in refusal(f"a=[{most}1]").message
    assert "more than" in refusal(f"a=[{most}]\na+=[1]").message


def test_command_line_words_come_after_the_file() -> None:
    raw = parse_text('memory=64\nextra="a"', "f")
    parse_into(raw, "memory=128", "command line")
    parse_into(raw, 'extra+=" b"', "command line")
    assert plain(raw.settings["memory"].value) == "128"
    assert plain(raw.settings["extra"].value) == "a b"
    with pytest.raises(UserError, match="command line:1:8"):
        parse_into(raw, "memory==", "command line")


def test_bytes_that_are_no_utf8_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "x.cfg"
    path.write_bytes(b'a="\xff"')
    assert os.fsencode(str(plain(parse_file(str(path)).settings["a"].value))) == b"\xff"


def test_byte_order_marks(tmp_path: Path) -> None:
    path = tmp_path / "x.cfg"
    path.write_bytes(b"\xef\xbb\xbfa=1\r\n")
    assert plain(parse_file(str(path)).settings["a"].value) == "1"
    path.write_bytes("a=1".encode("utf-16"))
    with pytest.raises(UserError) as caught:
        parse_file(str(path))
    assert "UTF-8" in caught.value.hint


@pytest.mark.parametrize("kind", ["missing", "directory", "huge"])
def test_unreadable_files(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.cfg"
    if kind == "directory":
        path.mkdir()
    elif kind == "huge":
        with path.open("wb") as file:
            file.truncate(MAX_FILE_BYTES + 1)
    with pytest.raises(UserError) as caught:
        parse_file(str(path))
    assert caught.value.exit_code == 3
    assert str(path) in caught.value.message


def test_dev_null_is_an_empty_file() -> None:
    assert parse_file("/dev/null").settings == {}
