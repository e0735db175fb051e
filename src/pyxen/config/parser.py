"""The grammar of an xl.cfg file: settings of strings, numbers and nested lists.

    file:    { statement }
    statement: [ name ("=" | "+=") value ] (newline | ";" | end of file)
    value:   string | number | "[" { newline } [ value {"," value} [","] ] "]"

Newlines may stand anywhere inside a list, and nowhere else inside a value.
Source: xl.cfg(5) "Format", and what real xl accepts.
"""

import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from pyxen.config.lexer import Kind, Token, tokenize
from pyxen.config.report import Place
from pyxen.errors import UserError

MAX_FILE_BYTES = 1 << 20
MAX_LIST_DEPTH = 32
MAX_LIST_ITEMS = 4096


class Atom(NamedTuple):
    """A string or a number: xl keeps both as text until a setting is read."""

    text: str
    place: Place


class ListValue(NamedTuple):
    """A bracketed list, its items atoms or lists."""

    items: tuple["Value", ...]
    place: Place


Value = Atom | ListValue


class Setting(NamedTuple):
    """One assignment; `appended` says that it was written with `+=`."""

    name: str
    value: Value
    appended: bool
    place: Place


@dataclass
class RawConfig:
    """A parsed file: the settings by name, of which the last assignment counts."""

    filename: str
    settings: dict[str, Setting]

    def get(self, name: str) -> Setting | None:
        """Return the setting of that name, or None."""
        return self.settings.get(name)


def parse_file(path: str) -> RawConfig:
    """Read and parse a configuration file.

    Raises: UserError with exit code 3 when it cannot be read, 1 when it cannot be parsed.
    """
    return parse_text(_decode(read_bytes(path), path), path)


def read_bytes(path: str) -> bytes:
    """Return the content of a configuration file (a plain file, a pipe or /dev/null).

    Raises: UserError with exit code 3.
    """
    try:
        with open(path, "rb") as file:
            if not _is_readable_kind(os.fstat(file.fileno()).st_mode, path):
                raise UserError(f"cannot read {path}: it is not a plain file", "", 3)
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        hint = "give the path of a domain's configuration file" if not os.path.exists(path) else ""
        raise UserError(f"cannot read {path}: {error.strerror}", hint, 3) from error
    if len(data) > MAX_FILE_BYTES:
        raise UserError(f"cannot read {path}: it is larger than 1 MiB", "is it a disk image?", 3)
    return data


def _is_readable_kind(mode: int, path: str) -> bool:
    return stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or path == "/dev/null"


def _decode(data: bytes, path: str) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise UserError(f"{path}: the file is in UTF-16", "save it as UTF-8", 1)
    return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")


def parse_text(text: str, filename: str) -> RawConfig:
    """Parse a configuration.

    Raises: UserError (exit code 1) with file, line and column.
    """
    raw = RawConfig(filename, {})
    parse_into(raw, text, filename)
    return raw


def parse_into(raw: RawConfig, text: str, source: str) -> None:
    """Parse more settings into `raw`, as xl does with the command line's `key=value` words.

    Raises: UserError (exit code 1) with source, line and column.
    """
    _Parser(tokenize(text.replace("\r\n", "\n"), source), raw.settings).run()


class _Parser:
    def __init__(self, tokens: list[Token], settings: dict[str, Setting]) -> None:
        self._tokens = tokens
        self._at = 0
        self._settings = settings

    def run(self) -> None:
        while (token := self._next()).kind is not Kind.END:
            if token.kind is Kind.NAME:
                self._store(self._assignment(token))
                self._end_of_statement()
            elif token.kind not in (Kind.NEWLINE, Kind.SEMICOLON):
                hint = "start each line with the name of a setting"
                raise _unexpected(token, "the name of a setting", hint)

    def _next(self) -> Token:
        token = self._tokens[self._at]
        if token.kind is not Kind.END:
            self._at += 1
        return token

    def _end_of_statement(self) -> None:
        token = self._next()
        if token.kind not in (Kind.NEWLINE, Kind.SEMICOLON, Kind.END):
            hint = "put each setting on its own line, or a ';' between two"
            raise _unexpected(token, "the end of the line", hint)

    def _assignment(self, name: Token) -> Setting:
        operator = self._next()
        if operator.kind not in (Kind.ASSIGN, Kind.APPEND):
            hint = f"write {name.text} = value, on one line"
            raise _unexpected(operator, "'=' or '+='", hint)
        value = self._value(self._next(), 0)
        return Setting(name.text, value, operator.kind is Kind.APPEND, name.place)

    def _value(self, token: Token, depth: int) -> Value:
        if token.kind in (Kind.STRING, Kind.NUMBER):
            return Atom(token.text, token.place)
        if token.kind is Kind.OPEN:
            return self._list(token, depth + 1)
        hint = ""
        if token.kind is Kind.NAME:
            hint = f'put text in quotes: "{token.text}"'
        elif token.kind is Kind.NEWLINE:
            hint = "the value starts on the same line"
        raise _unexpected(token, "a string, a number or '['", hint)

    def _list(self, opening: Token, depth: int) -> ListValue:
        if depth > MAX_LIST_DEPTH:
            raise UserError(
                f"{opening.place}: lists are nested deeper than {MAX_LIST_DEPTH}", "", 1
            )
        items: list[Value] = []
        token = self._skip_newlines()
        while token.kind is not Kind.CLOSE:
            items.append(self._value(token, depth))
            _check_length(items, opening.place)
            token = self._skip_newlines()
            if token.kind is Kind.COMMA:
                token = self._skip_newlines()
            elif token.kind is not Kind.CLOSE:
                hint = f"the list that starts at line {opening.place.line} goes on until its ']'"
                raise _unexpected(token, "',' or ']'", hint)
        return ListValue(tuple(items), opening.place)

    def _skip_newlines(self) -> Token:
        while (token := self._next()).kind is Kind.NEWLINE:
            pass
        return token

    def _store(self, setting: Setting) -> None:
        before = self._settings.get(setting.name)
        if setting.appended and before is not None:
            setting = setting._replace(value=_joined(before.value, setting))
        self._settings[setting.name] = setting


def _joined(before: Value, setting: Setting) -> Value:
    added = setting.value
    if isinstance(before, Atom) and isinstance(added, Atom):
        return Atom(before.text + added.text, added.place)
    if isinstance(before, ListValue) and isinstance(added, ListValue):
        items = before.items + added.items
        _check_length(items, added.place)
        return ListValue(items, added.place)
    had, gets = ("a list", "a string") if isinstance(before, ListValue) else ("a string", "a list")
    message = f"{setting.place}: '{setting.name}' is {had} and '+=' adds {gets}"
    raise UserError(message, "add a list to a list, or a string to a string", 1)


def _check_length(items: Sequence[Value], place: Place) -> None:
    if len(items) > MAX_LIST_ITEMS:
        raise UserError(f"{place}: the list has more than {MAX_LIST_ITEMS} items", "", 1)


def _unexpected(token: Token, wanted: str, hint: str) -> UserError:
    found = token.kind.value
    if token.kind in (Kind.NAME, Kind.NUMBER, Kind.STRING):
        found += f" ({token.text[:40]!r})"
    return UserError(f"{token.place}: found {found} where {wanted} belongs", hint, 1)
