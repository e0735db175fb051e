"""Xenstore for the process that hosts it: synchronous, in memory, with domid 0's rights."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.xenstored import operations
from pyxen.xenstored.daemon import Xenstore
from pyxen.xenstored.permissions import DOM0, Caller, Permission, parse_permission
from pyxen.xenstored.view import View


class _Nodes:
    """Access to nodes; what a view is, and when it is committed, is the subclass's choice."""

    def __init__(self, xenstore: Xenstore) -> None:
        self._xenstore = xenstore
        self._limits = xenstore.store.limits

    @contextmanager
    def _view(self) -> Iterator[View]:
        raise NotImplementedError

    def _path(self, path: str) -> str:
        if not path.startswith(("/", "@")):
            path = f"{xs.domain_path(0)}/{path}"
        xs.check_path(path, self._xenstore.quotas.path_max)
        return path

    def read(self, path: str) -> bytes:
        """A node's value. Raises XenError(ENOENT)."""
        with self._view() as view:
            return operations.read(view, DOM0, self._path(path))

    def exists(self, path: str) -> bool:
        """Whether there is such a node."""
        with self._view() as view:
            return view.node(self._path(path)) is not None

    def directory(self, path: str) -> list[str]:
        """The names of a node's children, sorted. Raises XenError(ENOENT)."""
        with self._view() as view:
            return operations.directory(view, DOM0, self._path(path))

    def get_perms(self, path: str) -> list[str]:
        """A node's permissions, such as ["n0", "r5"]. Raises XenError(ENOENT)."""
        with self._view() as view:
            return [str(p) for p in operations.get_perms(view, DOM0, self._path(path))]

    def write(self, path: str, value: bytes | str) -> None:
        """Set a node's value, creating it and its parents."""
        data = value.encode() if isinstance(value, str) else value
        with self._view() as view:
            operations.write(view, DOM0, self._path(path), data, self._limits)

    def mkdir(self, path: str, perms: Iterable[str | Permission] | None = None) -> None:
        """Create a node and its parents unless it exists; with `perms`, set those."""
        with self._view() as view:
            operations.mkdir(view, DOM0, self._path(path), self._limits)
            if perms is not None:
                self._set_perms(view, path, perms)

    def rm(self, path: str) -> None:
        """Remove a node and all below it; it need not exist, nor its parent."""
        with self._view() as view:
            absolute = self._path(path)
            if view.node(absolute) is not None:
                operations.rm(view, DOM0, absolute)

    def set_perms(self, path: str, perms: Iterable[str | Permission]) -> None:
        """Set a node's permissions, such as ["n0", "r5"]. Raises XenError(ENOENT)."""
        with self._view() as view:
            self._set_perms(view, path, perms)

    def _set_perms(self, view: View, path: str, perms: Iterable[str | Permission]) -> None:
        parsed = tuple(parse_permission(p) if isinstance(p, str) else p for p in perms)
        if not parsed:
            raise XenError(E.INVAL, "no owner")
        absolute = path if path.startswith("@") else self._path(path)
        operations.set_perms(view, DOM0, absolute, parsed, self._limits)


class LocalTransaction(_Nodes):
    """Reads and writes of one transaction."""

    def __init__(self, xenstore: Xenstore, view: View) -> None:
        super().__init__(xenstore)
        self._transaction = view

    @contextmanager
    def _view(self) -> Iterator[View]:
        yield self._transaction


class _LocalWatcher:
    """One watch of the hosting process. Callbacks run later, never inside an operation."""

    def __init__(
        self,
        callback: Callable[[str, str], None],
        schedule: Callable[[Callable[[], None]], None],
    ) -> None:
        self.caller: Caller = DOM0
        self._callback: Callable[[str, str], None] | None = callback
        self._schedule = schedule

    def deliver(self, path: str, token: str) -> None:
        def call() -> None:
            if self._callback is not None:
                self._callback(path, token)

        self._schedule(call)

    def close(self) -> None:
        self._callback = None


class LocalClient(_Nodes):
    """What xend uses. `schedule` runs a callable soon (an event loop's call_soon)."""

    def __init__(self, xenstore: Xenstore, schedule: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(xenstore)
        self._schedule = schedule
        self._watchers: dict[tuple[str, str], _LocalWatcher] = {}

    @contextmanager
    def _view(self) -> Iterator[View]:
        store = self._xenstore.store
        view = store.view()
        yield view
        store.commit(view, DOM0)

    @contextmanager
    def transaction(self) -> Iterator[LocalTransaction]:
        """Several reads and writes as one; an exception abandons them.

        Raises: XenError(EAGAIN) at the end if somebody else changed what it touched; that needs an
        `await` inside, since nothing else runs meanwhile.
        """
        store = self._xenstore.store
        view = store.transaction(DOM0)
        yield LocalTransaction(self._xenstore, view)
        store.commit(view, DOM0)

    def watch(
        self,
        path: str,
        token: str,
        callback: Callable[[str, str], None],
        depth: int | None = None,
    ) -> None:
        """Have `callback(path, token)` called for a path and what is below it; once at first.

        Raises: XenError(EEXIST) if that path and token are watched already.
        """
        if not path.startswith("@"):
            path = self._path(path)
        if (path, token) in self._watchers:
            raise XenError(E.EXIST, path)
        watcher = _LocalWatcher(callback, self._schedule)
        self._watchers[path, token] = watcher
        self._xenstore.watches.add(watcher, path, token, depth)
        watcher.deliver(path, token)

    def unwatch(self, path: str, token: str) -> None:
        """Take a watch back; its callback is not called again. Raises XenError(ENOENT)."""
        if not path.startswith("@"):
            path = self._path(path)
        watcher = self._watchers.pop((path, token), None)
        if watcher is None:
            raise XenError(E.NOENT, path)
        watcher.close()
        self._xenstore.watches.remove_all(watcher)
