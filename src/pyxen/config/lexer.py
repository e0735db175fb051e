"""The words of an xl.cfg file.

Source: xl.cfg(5) "Format", and what real xl accepts. Differs from xl: CRLF line ends and a byte
order mark are accepted; `\\xHH` and `\\ooo` escapes give the character they name (xl refuses the
first and drops the second); a last line that is a comment needs no newline.
"""

import re
from enum import Enum
from typing import NamedTuple

from pyxen.config.report import Place
from pyxen.errors import UserError

MAX_LEXICAL_ERRORS = 10

PYTHON_HINT = "xl configuration is not Python: only key = value lines with strings, numbers, lists"


class Kind(Enum):
    """Kinds of tokens; the value is how an error message calls one."""

    NAME = "a name"
    STRING = "a string"
    NUMBER = "a number"
    NEWLINE = "the end of the line"
    SEMICOLON = "';'"
    ASSIGN = "'='"
    APPEND = "'+='"
    OPEN = "'['"
    CLOSE = "']'"
    COMMA = "','"
    END = "the end of the file"


class Token(NamedTuple):
    """One word of the file: `text` is unquoted for strings and as written otherwise."""

    kind: Kind
    text: str
    place: Place


class LexicalError(NamedTuple):
    """A piece of text that is no token."""

    place: Place
    message: str
    hint: str


_TOKEN = re.compile(
    r"""
      (?P<blank>   [ \t]+ )
    | (?P<newline> \n | \#[^\n]*(?:\n|\Z) )
    | (?P<name>    [a-z][._0-9a-z]* )
    | (?P<number>  [0-9][0-9a-fx]* )
    | (?P<string>  '(?:[^'\\\n]|\\.)*' | "(?:[^"\\\n]|\\.)*" )
    | (?P<mark>    \+= | [=,;\[\]] )
    """,
    re.VERBOSE,
)
_BAD_WORD = re.compile(r".[^ \t\n]*", re.DOTALL)
_MARKS = {
    "=": Kind.ASSIGN,
    "+=": Kind.APPEND,
    ",": Kind.COMMA,
    ";": Kind.SEMICOLON,
    "[": Kind.OPEN,
    "]": Kind.CLOSE,
}
_ESCAPE = re.compile(r"\\(x[0-9a-fA-F]{1,2}|[0-7]{1,3}|.)", re.DOTALL)
_ESCAPED = {
    "a": "\a",
    "b": "\b",
    "f": "\f",
    "n": "\n",
    "r": "\r",
    "t": "\t",
    "v": "\v",
    "'": "'",
    '"': '"',
    "\\": "\\",
}


def tokenize(text: str, source: str) -> list[Token]:
    """Split a configuration into tokens; the last one is END.

    Raises: UserError (exit code 1) naming every piece of text that is no token.
    """
    tokens: list[Token] = []
    errors: list[LexicalError] = []
    line, line_start, at = 1, 0, 0
    while at < len(text) and len(errors) < MAX_LEXICAL_ERRORS:
        match = _TOKEN.match(text, at)
        place = Place(source, line, at - line_start + 1)
        if match is None:
            errors.append(_lexical_error(text, at, place))
            at = _line_end(text, at)
            continue
        at = match.end()
        if match.lastgroup == "string":
            try:
                tokens.append(Token(Kind.STRING, unquote(match[0]), place))
            except ValueError as error:
                hint = "write \\\\ for a backslash"
                errors.append(LexicalError(place, f"{error} in {_shown(match[0])}", hint))
        elif match.lastgroup != "blank":
            tokens.append(_plain_token(match, place))
        if match.lastgroup == "newline":
            line, line_start = line + 1, at
    if errors:
        raise _as_user_error(errors)
    tokens.append(Token(Kind.END, "", Place(source, line, at - line_start + 1)))
    return tokens


def _plain_token(match: re.Match[str], place: Place) -> Token:
    match match.lastgroup:
        case "name":
            return Token(Kind.NAME, match[0], place)
        case "number":
            return Token(Kind.NUMBER, match[0], place)
        case "newline":
            return Token(Kind.NEWLINE, "", place)
    return Token(_MARKS[match[0]], match[0], place)


def unquote(literal: str) -> str:
    """Return the text a quoted literal stands for.

    Raises: ValueError for an escape that does not exist, or one that makes a NUL.
    """
    if "\\" not in literal:
        return literal[1:-1]
    return _ESCAPE.sub(_unescape, literal[1:-1])


def _unescape(match: re.Match[str]) -> str:
    code = match[1]
    if code in _ESCAPED:
        return _ESCAPED[code]
    if code[0] == "x" and len(code) > 1:
        value = int(code[1:], 16)
    elif code[0] in "01234567":
        value = int(code, 8) & 0xFF
    else:
        raise ValueError(f"there is no escape \\{code}")
    if value == 0:
        raise ValueError("a string cannot contain a NUL character")
    # The file is bytes to xl: one above 0x7f keeps its value through surrogateescape.
    return chr(value) if value < 0x80 else bytes([value]).decode("utf-8", "surrogateescape")


def _line_end(text: str, at: int) -> int:
    end = text.find("\n", at)
    return len(text) if end < 0 else end


def _shown(word: str) -> str:
    word = word.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return repr(word if len(word) <= 40 else word[:40] + "…")


def _lexical_error(text: str, at: int, place: Place) -> LexicalError:
    found = _BAD_WORD.match(text, at)
    word = found[0] if found else text[at]
    if word[0] in "'\"":
        hint = "close it on the same line; a line break inside a string is written \\n"
        return LexicalError(place, "the string that starts here has no closing quote", hint)
    return LexicalError(place, f"unexpected {_shown(word)}", _advice(text, at, word))


def _advice(text: str, at: int, word: str) -> str:
    first = word[0]
    before = text[at - 1] if at else "\n"
    if word.rstrip(",;])") in ("True", "False", "None"):
        return "write 1 for yes and 0 for no"
    if first == "-" and before.isalnum():
        return "names of settings have underscores, not dashes"
    if first == "-":
        return "numbers cannot be negative"
    if first.isalpha() and before.isdigit():
        return "numbers have no unit; memory and maxmem are in MiB"
    if first in "+-.():%{}":
        return PYTHON_HINT
    if first in "“”‘’`´":
        return "use plain quotes: \" or '"
    if first.isupper():
        return "names of settings are lower case, and text goes in quotes"
    if not first.isprintable():
        return "the file contains a control character; is it a text file?"
    return "put text in quotes, and comments after a #"


def _as_user_error(errors: list[LexicalError]) -> UserError:
    if len(errors) == 1:
        return UserError(f"{errors[0].place}: {errors[0].message}", errors[0].hint, 1)
    lines = [f"{e.place}: {e.message} ({e.hint})" for e in errors]
    return UserError("\n".join(lines), "", 1)
