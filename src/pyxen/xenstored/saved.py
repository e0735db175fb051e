"""The state that a journal describes, rebuilt record by record."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from pyxen.xenstored import tree
from pyxen.xenstored.records import (
    Introduced,
    Put,
    QuotaSet,
    Record,
    Released,
    Removed,
    Started,
    Targeted,
    Unwatched,
    Watched,
    WatchesReset,
)
from pyxen.xenstored.tree import Node, find, parent_path


@dataclass
class SavedDomain:
    """A domain as the journal knows it."""

    mfn: int
    port: int
    target: int | None = None
    watches: dict[tuple[str, str], Watched] = field(default_factory=dict)


class SavedState:
    """Everything that outlives a restart.

    The tree is edited in place while it is loaded: nobody has a snapshot of it yet.
    """

    def __init__(self) -> None:
        self.epoch = 0
        self.root: Node | None = None
        self.domains: dict[int, SavedDomain] = {}
        self.quotas: dict[str, int] = {}

    def apply(self, batch: Iterable[Record]) -> None:
        """Go on to the state after a batch."""
        for record in batch:
            self._apply(record)

    def _apply(self, record: Record) -> None:
        match record:
            case Put():
                self._put(record)
            case Removed(path):
                self._remove(path)
            case Started(epoch):
                self.epoch = epoch
            case QuotaSet(name, value):
                self.quotas[name] = value
            case Introduced(domid, mfn, port):
                self.domains[domid] = SavedDomain(mfn, port)
            case Released(domid):
                self.domains.pop(domid, None)
                for domain in self.domains.values():
                    if domain.target == domid:
                        domain.target = None
            case _:
                self._apply_to_domain(record)

    def _apply_to_domain(self, record: Targeted | Watched | Unwatched | WatchesReset) -> None:
        domain = self.domains.get(record.domid)
        if domain is None:
            return
        match record:
            case Targeted(_, target):
                domain.target = target
            case Watched(_, path, token):
                domain.watches[path, token] = record
            case Unwatched(_, path, token):
                domain.watches.pop((path, token), None)
            case WatchesReset():
                domain.watches.clear()

    def _put(self, record: Put) -> None:
        if record.path == "/":
            old = self.root
            self.root = Node(record.value, record.perms, 0)
            if old is not None:
                self.root.children = old.children
                self.root.names_bytes = old.names_bytes
            return
        parent = self._parent(record.path)
        if parent is not None:
            name = record.path.rpartition("/")[2]
            tree.put_child(parent, name, record.value, record.perms, 0)

    def _remove(self, path: str) -> None:
        parent = self._parent(path)
        name = path.rpartition("/")[2]
        if parent is not None and name in parent.children:
            tree.remove_child(parent, name, 0)

    def _parent(self, path: str) -> Node | None:
        return None if self.root is None else find(self.root, parent_path(path))
