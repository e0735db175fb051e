"""Typed access to the settings of a parsed file.

A value of the wrong kind is warned about and counts as absent, as in xl: `memory="abc"` is the
default memory. What a sensible range is, the schema says.
"""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from pyxen.config.number import LONG_MAX, LONG_MIN, strtol
from pyxen.config.parser import Atom, ListValue, RawConfig, Setting
from pyxen.config.report import Place, Report
from pyxen.errors import UserError

P = ParamSpec("P")
T = TypeVar("T")


class Settings:
    """The settings of one file, and the report that collects what is wrong with them."""

    def __init__(self, raw: RawConfig, report: Report) -> None:
        self.raw = raw
        self.report = report

    def place(self, name: str) -> Place | None:
        """Return where a setting stands."""
        setting = self.raw.get(name)
        return setting.place if setting else None

    def warn(self, name: str, message: str) -> None:
        """Warn about a setting."""
        self.report.warn(self.place(name), message)

    def refuse(self, name: str, message: str, hint: str = "", exit_code: int = 1) -> None:
        """Report a setting, or the want of it, that makes the configuration unusable."""
        place = self.place(name)
        if place is None:
            message = f"{self.raw.filename}: {message}"
        self.report.refuse(place, UserError(message, hint, exit_code))

    def guard(self, name: str, read: Callable[P, T], *args: P.args, **kw: P.kwargs) -> T | None:
        """Return `read(…)`, or None with its UserError reported at the setting's place."""
        return self._guard(self.place(name), read, *args, **kw)

    def _guard(
        self, place: Place | None, read: Callable[P, T], *args: P.args, **kw: P.kwargs
    ) -> T | None:
        try:
            return read(*args, **kw)
        except UserError as error:
            self.report.refuse(place, error)
            return None

    def is_list(self, name: str) -> bool:
        """Tell whether a setting is there and is a list."""
        setting = self.raw.get(name)
        return setting is not None and isinstance(setting.value, ListValue)

    def string(self, name: str) -> str | None:
        """Return a string, or None if the setting is absent or a list."""
        setting = self.raw.get(name)
        if setting is None:
            return None
        if isinstance(setting.value, ListValue):
            self.warn(name, f"{name} is a list and should be a single value; it is ignored")
            return None
        return setting.value.text

    def number(self, name: str, *, quiet: bool = False) -> int | None:
        """Return a number of at most 64 bits, or None if the setting is absent or no number."""
        setting = self.raw.get(name)
        if setting is None:
            return None
        text = self.string(name) if not quiet else _text(setting)
        if text is None:
            return None
        problem = ""
        found = strtol(text)
        if setting.appended:
            problem = "'+=' does not add numbers"
        elif found is None or found[1]:
            problem = f"{text!r} is not a number"
        elif not LONG_MIN <= found[0] <= LONG_MAX:
            problem = f"{text} is too large"
        if not problem and found is not None:
            return found[0]
        if not quiet:
            self.warn(name, f"{name}: {problem}; it is ignored")
        return None

    def boolean(self, name: str) -> bool | None:
        """Return a flag (a number, of which 0 is no), or None."""
        setting = self.raw.get(name)
        if setting is None:
            return None
        text = _text(setting)
        if text is not None and strtol(text) is None and not setting.appended:
            self.warn(name, f"{name}: {text!r} is not a number; write 1 for yes, 0 for no")
            return None
        number = self.number(name)
        return None if number is None else number != 0

    def atoms(self, name: str) -> list[Atom] | None:
        """Return the items of a list, or None if the setting is absent or a single value.

        As in xl the list ends where an item is itself a list, but not in silence.
        """
        setting = self.raw.get(name)
        if setting is None:
            return None
        if isinstance(setting.value, Atom):
            hint = f'write {name}=["{setting.value.text}"]'
            self.warn(
                name, f"{name} is a single value and should be a list; it is ignored ({hint})"
            )
            return None
        return self._leading_atoms(setting.value, name)

    def _leading_atoms(self, value: ListValue, name: str) -> list[Atom]:
        atoms = []
        for item in value.items:
            if isinstance(item, ListValue):
                message = f"{name}: an item is itself a list; it and what follows is ignored"
                self.report.warn(item.place, message)
                break
            atoms.append(item)
        return atoms

    def strings(self, name: str) -> list[str] | None:
        """Return the items of a list of strings, or None."""
        atoms = self.atoms(name)
        return None if atoms is None else [atom.text for atom in atoms]

    def lists(self, name: str) -> list[list[str]] | None:
        """Return the items of a list of lists of strings, or None.

        An item that is not a list is refused.
        """
        setting = self.raw.get(name)
        if setting is None:
            return None
        if isinstance(setting.value, Atom):
            self.warn(name, f"{name} is a single value and should be a list; it is ignored")
            return None
        rows = []
        for item in setting.value.items:
            if isinstance(item, Atom):
                error = UserError(f"{name}: {item.text!r} should be a list", 'write [["…"]]', 1)
                self.report.refuse(item.place, error)
            else:
                rows.append([atom.text for atom in self._leading_atoms(item, name)])
        return rows

    def each(self, name: str, read: Callable[[str, int, Callable[[str], None]], T]) -> list[T]:
        """Read every item of a list of strings with `read(text, index, warn)`.

        What `read` refuses or warns about is reported at the item's own place.
        """
        results = []
        for index, atom in enumerate(self.atoms(name) or []):
            result = self._guard(atom.place, read, atom.text, index, self._at(atom))
            if result is not None:
                results.append(result)
        return results

    def _at(self, atom: Atom) -> Callable[[str], None]:
        return lambda message: self.report.warn(atom.place, message)


def _text(setting: Setting) -> str | None:
    return setting.value.text if isinstance(setting.value, Atom) else None
