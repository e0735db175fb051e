"""GRUB's `test` command.

Source: GRUB manual 2.06, section "test".
"""

from __future__ import annotations

from collections.abc import Callable

_STRINGS: dict[str, Callable[[int], bool]] = {
    "=": lambda order: order == 0,
    "==": lambda order: order == 0,
    "!=": lambda order: order != 0,
    "<": lambda order: order < 0,
    "<=": lambda order: order <= 0,
    ">": lambda order: order > 0,
    ">=": lambda order: order >= 0,
}
_NUMBERS = {
    "-eq": _STRINGS["="],
    "-ne": _STRINGS["!="],
    "-lt": _STRINGS["<"],
    "-le": _STRINGS["<="],
    "-gt": _STRINGS[">"],
    "-ge": _STRINGS[">="],
}
DEPTH_MAX = 20


def holds(words: list[str], exists: Callable[[str, str], bool]) -> bool:
    """Whether an expression is true; one that makes no sense is not.

    Args: exists: answers for a path and one of e, f, d, s.
    """
    return _Test(words, exists).result()


class _Test:
    def __init__(self, words: list[str], exists: Callable[[str, str], bool]) -> None:
        self._words = words
        self._exists = exists
        self._at = 0
        self._depth = 0

    def result(self) -> bool:
        return self._or() if self._words else False

    def _or(self) -> bool:
        value = self._and()
        while self._next() == "-o":
            self._at += 1
            value = self._and() or value
        return value

    def _and(self) -> bool:
        value = self._not()
        while self._next() == "-a":
            self._at += 1
            value = self._not() and value
        return value

    def _not(self) -> bool:
        negated = False
        while self._next() == "!" and not self._binary():
            negated = not negated
            self._at += 1
        return self._primary() != negated

    def _primary(self) -> bool:
        if self._binary():
            left, operator, right = self._words[self._at : self._at + 3]
            self._at += 3
            if operator in _STRINGS:
                return _STRINGS[operator]((left > right) - (left < right))
            a, b = _number(left), _number(right)
            return _NUMBERS[operator]((a > b) - (a < b))
        word = self._next()
        self._at += 1
        if word == "(" and self._depth < DEPTH_MAX:
            self._depth += 1
            value = self._or()
            self._at += self._next() == ")"
            self._depth -= 1
            return value
        if word in ("-d", "-e", "-f", "-s", "-n", "-z") and self._at < len(self._words):
            operand = self._next()
            self._at += 1
            if word in ("-n", "-z"):
                return bool(operand) == (word == "-n")
            return self._exists(operand, word[1])
        return bool(word)

    def _binary(self) -> bool:
        operator = self._words[self._at + 1 : self._at + 3]
        return len(operator) == 2 and (operator[0] in _STRINGS or operator[0] in _NUMBERS)

    def _next(self) -> str:
        return self._words[self._at] if self._at < len(self._words) else ""


def _number(text: str) -> int:
    try:
        return int(text[:20], 0)
    except ValueError:
        return 0
