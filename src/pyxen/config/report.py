"""Where in a configuration something stands, and what is said about it."""

from typing import NamedTuple, NoReturn

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
        where = f"{self.place}: " if self.place else ""
        return where + self.message


class Report:
    """Collects what is wrong with one configuration, so that all of it is told at once."""

    def __init__(self) -> None:
        self.warnings: list[ConfigWarning] = []
        self._refusals: list[UserError] = []

    def warn(self, place: Place | None, message: str) -> None:
        """Note something that does not stop the domain from being created."""
        self.warnings.append(ConfigWarning(place, message))

    def refuse(self, place: Place | None, error: UserError) -> None:
        """Note an error; `finish` raises it together with the others."""
        where = f"{place}: " if place else ""
        self._refusals.append(UserError(where + error.message, error.hint, error.exit_code))

    def finish(self) -> None:
        """Raise the refusals as one UserError, with the exit code and hint of the first."""
        if self._refusals:
            self._raise()

    def _raise(self) -> NoReturn:
        first, *more = self._refusals
        if not more:
            raise first
        lines = [e.message + (f" ({e.hint})" if e.hint else "") for e in self._refusals]
        raise UserError("\n".join(lines), "", first.exit_code)


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """Return "; did you mean 'x'?" for the known word most like `word`, else an empty string."""
    from difflib import get_close_matches  # only needed once something is wrong

    folded = word.lower().replace("-", "_")
    by_fold = {name.replace("-", "_"): name for name in known}
    found = get_close_matches(folded, list(by_fold), 1, 0.6)
    return f"; did you mean '{by_fold[found[0]]}'?" if found else ""
