"""Where in a configuration something stands, and what is said about it."""

from typing import NamedTuple

from pyxen.errors import UserError


class Place(NamedTuple):
    """A position in a source; lines and columns count from 1, columns in characters."""

    source: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}:{self.column}"


class ConfigWarning(NamedTuple):
    """Something accepted that the author probably did not mean; `str()` has place and text."""

    place: Place | None
    message: str

    def __str__(self) -> str:
        return _placed(self.place, self.message)


class Report:
    """Collects what is wrong with one configuration, so that all of it is told at once."""

    def __init__(self) -> None:
        self.warnings: list[ConfigWarning] = []
        self._refusals: list[tuple[Place | None, UserError]] = []

    def warn(self, place: Place | None, message: str) -> None:
        """Note something that does not stop the domain from being created."""
        self.warnings.append(ConfigWarning(place, message))

    def refuse(self, place: Place | None, error: UserError) -> None:
        """Note an error; `finish` raises it together with the others."""
        self._refusals.append((place, error))

    def finish(self) -> None:
        """Raise what was refused as one UserError, with the exit code of the first refusal.

        The warnings come with it, because a misspelt name is often why something is missing.
        """
        if not self._refusals:
            return
        place, first = self._refusals[0]
        if len(self._refusals) == 1 and not self.warnings:
            raise UserError(_placed(place, first.message), first.hint, first.exit_code)
        in_order = sorted(self._refusals, key=lambda refusal: refusal[0] or _NOWHERE)
        lines = [
            _placed(place, error.message) + (f" ({error.hint})" if error.hint else "")
            for place, error in in_order
        ]
        lines += [_placed(place, f"warning: {message}") for place, message in self.warnings]
        raise UserError("\n".join(lines), "", first.exit_code)


_NOWHERE = Place("", 0, 0)


def _placed(place: Place | None, message: str) -> str:
    return f"{place}: {message}" if place else message


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return "; did you mean 'x'?" for the known word most like `word`, else an empty string."""
    from difflib import get_close_matches  # only needed once something is wrong

    folded = word.lower().replace("-", "_")
    by_fold = {name.replace("-", "_"): name for name in known}
    found = get_close_matches(folded, list(by_fold), 1, 0.6)
    return f"; did you mean '{by_fold[found[0]]}'?" if found else ""
