"""The language of grub.cfg: from text to a tree of commands.

Source: GRUB manual 2.06, chapter 15 "Writing full configuration files directly".
"""

from __future__ import annotations

from dataclasses import dataclass, field

from pyxen.bootloader.failure import ImageError

DEPTH_MAX = 40
TOKENS_MAX = 400_000
_BLANK = " \t\r"
_OPERATORS = ("\n", ";", "{", "}", "&&", "||", "|", "&", "<", ">")


@dataclass(frozen=True)
class Part:
    """A piece of a word: text as it stands, or the name of a variable."""

    text: str
    variable: bool
    quoted: bool


@dataclass(frozen=True)
class Token:
    """A word, or an operator (then `parts` is empty)."""

    line: int
    operator: str = ""
    parts: tuple[Part, ...] = ()

    @property
    def plain(self) -> str:
        """The text of a word that has neither quotes nor variables, else an empty string."""
        if len(self.parts) == 1 and not (self.parts[0].variable or self.parts[0].quoted):
            return self.parts[0].text
        return ""


@dataclass
class Command:
    """A command, with the block that follows menuentry and submenu."""

    words: list[Token]
    block: list[Statement] | None = None


@dataclass
class If:
    """Conditions with their bodies, the last one perhaps without a condition."""

    branches: list[tuple[list[Statement], list[Statement]]]
    otherwise: list[Statement] = field(default_factory=list)


@dataclass
class Loop:
    """while, until."""

    condition: list[Statement]
    body: list[Statement]
    until: bool


@dataclass
class For:
    """for NAME in WORDS."""

    name: str
    words: list[Token]
    body: list[Statement]


@dataclass
class Function:
    """A definition."""

    name: str
    body: list[Statement]


@dataclass
class Chain:
    """One statement after `&&` or `||`."""

    operator: str
    statement: Statement


Statement = Command | If | Loop | For | Function | Chain


def parse(text: str) -> list[Statement]:
    """The statements of a script. ImageError with the line if it is none."""
    return _Parser(_tokens(text)).script()


def _tokens(text: str) -> list[Token]:
    return _Lexer(text).tokens()


class _Lexer:
    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._line = 1

    def tokens(self) -> list[Token]:
        found: list[Token] = []
        while self._at < len(self._text):
            if len(found) > TOKENS_MAX:
                raise ImageError("the configuration is too long")
            char = self._text[self._at]
            if char in _BLANK:
                self._at += 1
            elif char == "#":
                end = self._text.find("\n", self._at)
                self._at = end if end >= 0 else len(self._text)
            elif self._text.startswith("\\\n", self._at):
                self._at += 2
                self._line += 1
            elif char in "\n;{}|&<>":
                double = self._text[self._at : self._at + 2]
                operator = double if double in _OPERATORS else char
                found.append(Token(self._line, operator))
                self._at += len(operator)
                self._line += char == "\n"
            else:
                found.append(self._word())
        return found

    def _word(self) -> Token:
        line, parts = self._line, []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in _BLANK or char in "\n;{}|&<>":
                break
            if char == "'":
                parts.append(self._single())
            elif char == '"':
                parts += self._double()
            elif char == "$":
                parts.append(self._variable(quoted=False))
            else:
                parts.append(self._plain())
        return Token(line, "", tuple(parts))

    def _single(self) -> Part:
        end = self._text.find("'", self._at + 1)
        if end < 0:
            raise ImageError(f"line {self._line}: a quote is not closed")
        text = self._text[self._at + 1 : end]
        self._at = end + 1
        self._line += text.count("\n")
        return Part(text, variable=False, quoted=True)

    def _double(self) -> list[Part]:
        start_line = self._line
        parts: list[Part] = []
        text: list[str] = []
        self._at += 1
        while self._at < len(self._text):
            char = self._text[self._at]
            if char == '"':
                self._at += 1
                parts.append(Part("".join(text), variable=False, quoted=True))
                return parts
            if char == "$":
                parts.append(Part("".join(text), variable=False, quoted=True))
                text = []
                parts.append(self._variable(quoted=True))
                continue
            if char == "\\" and self._text[self._at + 1 : self._at + 2] in ("$", '"', "\\"):
                self._at += 1
                char = self._text[self._at]
            self._line += char == "\n"
            text.append(char)
            self._at += 1
        raise ImageError(f"line {start_line}: a quote is not closed")

    def _variable(self, *, quoted: bool) -> Part:
        self._at += 1
        rest = self._text[self._at : self._at + 1]
        if rest == "{":
            end = self._text.find("}", self._at)
            if end < 0:
                raise ImageError(f"line {self._line}: ${{ is not closed")
            name = self._text[self._at + 1 : end]
            self._at = end + 1
            return Part(name, variable=True, quoted=quoted)
        if rest and rest in "?*@#":
            self._at += 1
            return Part(rest, variable=True, quoted=quoted)
        start = self._at
        while self._at < len(self._text) and (
            self._text[self._at].isalnum() or self._text[self._at] == "_"
        ):
            self._at += 1
        if self._at == start:
            return Part("$", variable=False, quoted=quoted)
        return Part(self._text[start : self._at], variable=True, quoted=quoted)

    def _plain(self) -> Part:
        text = []
        while self._at < len(self._text):
            char = self._text[self._at]
            if char in _BLANK or char in "\n;{}|&<>'\"$":
                break
            if char == "\\":
                self._at += 1
                char = self._text[self._at : self._at + 1]
                if char == "\n":
                    self._line += 1
                    self._at += 1
                    continue
            text.append(char)
            self._at += 1
        return Part("".join(text), variable=False, quoted=False)


class _Parser:
    def __init__(self, tokens: list[Token]) -> None:
        self._tokens = tokens
        self._at = 0
        self._depth = 0

    def script(self) -> list[Statement]:
        statements = self._statements(())
        if self._at < len(self._tokens):
            raise self._error(f"{self._shown()} without its beginning")
        return statements

    def _statements(self, ends: tuple[str, ...]) -> list[Statement]:
        """Statements up to one of the words `ends` or the end of the text."""
        self._depth += 1
        if self._depth > DEPTH_MAX:
            raise self._error("blocks are nested too deeply")
        found: list[Statement] = []
        while True:
            while self._operator() in ("\n", ";"):
                self._at += 1
            if self._at >= len(self._tokens) or self._operator() == "}" or self._word() in ends:
                break
            chained = self._operator() if self._operator() in ("&&", "||") else ""
            if chained:
                self._at += 1
                while self._operator() == "\n":
                    self._at += 1
            statement = self._statement()
            found.append(Chain(chained, statement) if chained else statement)
        self._depth -= 1
        return found

    def _statement(self) -> Statement:
        match self._word():
            case "if":
                return self._if()
            case "while" | "until" as word:
                self._at += 1
                condition = self._statements(("do",))
                return Loop(condition, self._do(), word == "until")
            case "for":
                return self._for()
            case "function":
                self._at += 1
                name = self._word()
                self._at += 1
                return Function(name, self._block())
        return self._command()

    def _if(self) -> If:
        branches = []
        while self._word() in ("if", "elif"):
            self._at += 1
            condition = self._statements(("then",))
            self._expect("then")
            branches.append((condition, self._statements(("elif", "else", "fi"))))
        result = If(branches)
        if self._word() == "else":
            self._at += 1
            result.otherwise = self._statements(("fi",))
        self._expect("fi")
        return result

    def _for(self) -> For:
        self._at += 1
        name = self._word()
        self._at += 1
        self._expect("in")
        words = []
        while self._at < len(self._tokens) and not self._operator():
            words.append(self._tokens[self._at])
            self._at += 1
        self._statements(("do",))
        return For(name, words, self._do())

    def _do(self) -> list[Statement]:
        self._expect("do")
        body = self._statements(("done",))
        self._expect("done")
        return body

    def _block(self) -> list[Statement]:
        while self._operator() == "\n":
            self._at += 1
        if self._operator() != "{":
            raise self._error("a block is missing")
        self._at += 1
        body = self._statements(())
        if self._operator() != "}":
            raise self._error("a block is not closed")
        self._at += 1
        return body

    def _command(self) -> Command:
        words = []
        while self._at < len(self._tokens) and not self._operator():
            words.append(self._tokens[self._at])
            self._at += 1
        if self._operator() == "{":
            return Command(words, self._block())
        if not words:
            raise self._error(f"{self._shown()} is out of place")
        return Command(words)

    def _word(self) -> str:
        return self._tokens[self._at].plain if self._at < len(self._tokens) else ""

    def _operator(self) -> str:
        return self._tokens[self._at].operator if self._at < len(self._tokens) else ""

    def _expect(self, word: str) -> None:
        if self._word() != word:
            raise self._error(f"{word} is missing before {self._shown()}")
        self._at += 1

    def _shown(self) -> str:
        shown = self._operator() or self._word()
        return "the end of the line" if shown == "\n" else shown or "the end"

    def _error(self, message: str) -> ImageError:
        at = min(self._at, len(self._tokens) - 1)
        line = self._tokens[at].line if self._tokens else 1
        return ImageError(f"line {line}: {message}")
