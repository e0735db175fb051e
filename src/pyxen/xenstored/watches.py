"""Watches: who is told of what.

An event on a path is told to the watches on that path and on every path above it (if their depth
reaches that far). Watches are indexed by path, so that an event costs as many look-ups as its path
has levels, however many watches there are.
"""

from itertools import count
from typing import Protocol

from pyxen.xenstored.permissions import READ, Caller, Perms, access_of
from pyxen.xenstored.tree import parent_path
from pyxen.xenstored.view import Event


class Watcher(Protocol):
    """Who holds watches."""

    @property
    def caller(self) -> Caller:
        """With whose rights."""

    def deliver(self, path: str, token: str) -> None:
        """Tell of an event."""


class Watch:
    """One watch. `prefix` is how much of an event's path is cut off (relative watches)."""

    __slots__ = ("depth", "path", "prefix", "serial", "token", "watcher")

    def __init__(
        self, watcher: Watcher, path: str, token: str, depth: int | None, prefix: int, serial: int
    ) -> None:
        self.watcher = watcher
        self.path = path
        self.token = token
        self.depth = depth
        self.prefix = prefix
        self.serial = serial

    def fire(self, path: str) -> None:
        """Tell the watcher about a path, in the form in which it watches."""
        self.watcher.deliver(path[self.prefix :], self.token)


class Watches:
    """All watches of all watchers."""

    def __init__(self) -> None:
        self._by_path: dict[str, list[Watch]] = {}
        self._by_watcher: dict[Watcher, dict[tuple[str, str], Watch]] = {}
        self._serial = count()

    def add(
        self, watcher: Watcher, path: str, token: str, depth: int | None = None, prefix: int = 0
    ) -> Watch | None:
        """Register; None if this watcher has that path and token already. Nothing is fired."""
        own = self._by_watcher.setdefault(watcher, {})
        if (path, token) in own:
            return None
        watch = Watch(watcher, path, token, depth, prefix, next(self._serial))
        own[path, token] = watch
        self._by_path.setdefault(path, []).append(watch)
        return watch

    def has(self, watcher: Watcher, path: str, token: str) -> bool:
        """Whether a watcher has that path and token."""
        return (path, token) in self._by_watcher.get(watcher, ())

    def remove(self, watcher: Watcher, path: str, token: str) -> bool:
        """Take one back; whether it was there."""
        own = self._by_watcher.get(watcher, {})
        watch = own.pop((path, token), None)
        if watch is None:
            return False
        if not own:
            del self._by_watcher[watcher]
        self._unlink(watch)
        return True

    def remove_all(self, watcher: Watcher) -> None:
        """Take all of a watcher's back."""
        for watch in self._by_watcher.pop(watcher, {}).values():
            self._unlink(watch)

    def _unlink(self, watch: Watch) -> None:
        there = self._by_path[watch.path]
        there.remove(watch)
        if not there:
            del self._by_path[watch.path]

    def of(self, watcher: Watcher) -> list[Watch]:
        """A watcher's watches, oldest first."""
        return list(self._by_watcher.get(watcher, {}).values())

    def count(self, watcher: Watcher) -> int:
        """How many a watcher has."""
        return len(self._by_watcher.get(watcher, ()))

    def fire(self, event: Event) -> None:
        """Tell everybody who watches a changed path and could see it."""
        self._tell([(w, event.path) for w in self._concerned(event)], event.seen)

    def _concerned(self, event: Event) -> list[Watch]:
        path = event.path
        concerned = list(self._by_path.get(path, ()))
        levels = 0
        while not event.exact and path != "/":
            path = parent_path(path)
            levels += 1
            for watch in self._by_path.get(path, ()):
                if watch.depth is None or watch.depth >= levels:
                    concerned.append(watch)
        return concerned

    def fire_special(self, name: str, domid: int, perms: Perms) -> None:
        """Tell of @introduceDomain or @releaseDomain.

        Watches with a depth, and those on `<name>/<domid>`, learn which domain it is.
        """
        which = f"{name}/{domid}"
        told = [
            (w, name if w.depth is None else which)
            for w in self._by_path.get(name, ())
            if w.depth != 0
        ]
        told += [(w, which) for w in self._by_path.get(which, ())]
        self._tell(told, (perms,))

    def _tell(self, told: list[tuple[Watch, str]], seen: tuple[Perms, ...]) -> None:
        if len(told) > 1:
            told.sort(key=lambda pair: pair[0].serial)
        allowed: dict[Watcher, bool] = {}
        for watch, path in told:
            watcher = watch.watcher
            if watcher not in allowed:
                caller = watcher.caller
                allowed[watcher] = any(access_of(caller, perms) & READ for perms in seen)
            if allowed[watcher]:
                watch.fire(path)
