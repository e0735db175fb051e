"""A tree being worked on: by one request, or by a transaction over many.

A view starts from a snapshot and collects three things: the edits in a form that can be applied to
another tree (and written to the journal), the watch events they cause, and by how much the number
of nodes of each owner changes. Nothing of it is visible to anybody else before it is committed.
"""

from collections.abc import Callable

from pyxen.xenstored import tree
from pyxen.xenstored.permissions import Perms
from pyxen.xenstored.tree import Node


class Event:
    """A path changed.

    `exact`: tell only those who watch this very path (nodes below a removed one).
    `seen`: permissions of the node and its parent before and after; who could read any of them may
    be told.
    """

    __slots__ = ("exact", "path", "seen")

    def __init__(self, path: str, exact: bool, seen: tuple[Perms, ...]) -> None:
        self.path = path
        self.exact = exact
        self.seen = seen


class View:
    """One snapshot with edits upon it."""

    __slots__ = ("_generation", "base", "created", "events", "owned", "removed", "root", "written")

    def __init__(self, base: Node, generation: Callable[[], int]) -> None:
        self.base = base
        self.root = base
        self.removed: dict[str, None] = {}
        self.written: dict[str, tuple[bytes, Perms]] = {}
        self.events: dict[str, Event] = {}
        self.owned: dict[int, int] = {}
        self.created = False
        self._generation = generation

    # What a transaction depends on is recorded by overriding these three.

    def node(self, path: str) -> Node | None:
        """The node at a path: its existence, value and permissions matter to the caller."""
        return tree.find(self.root, path)

    def listed(self, path: str) -> None:
        """The names of a node's children matter to the caller."""

    def subtree(self, path: str) -> None:
        """Everything below a path matters to the caller."""

    # Edits. The caller has checked them; they cannot fail.

    def put(self, path: str, value: bytes, perms: Perms, old: Node) -> None:
        """Change an existing node; `old` is what it was."""
        self.root = tree.put(self.root, path, value, perms, self._generation())
        self.written[path] = (value, perms)
        if old.perms[0].domid != perms[0].domid:
            self._count(old.perms[0].domid, -1)
            self._count(perms[0].domid, 1)

    def create(self, above: str, names: list[str], value: bytes, perms: Perms) -> None:
        """Add new nodes, each below the one before, under an existing one; the last has the value,
        the others are empty.
        """
        self.root = tree.put_chain(self.root, above, names, value, perms, self._generation())
        for name in names:
            above = tree.child_path(above, name)
            self.written[above] = (b"", perms)
        self.written[above] = (value, perms)
        self.created = True
        self._count(perms[0].domid, len(names))

    def remove(self, path: str) -> None:
        """Remove an existing node other than the root, and what is below it."""
        gone = tree.find(self.root, path)
        assert gone is not None
        for _, node in tree.walk(gone, path):
            self._count(node.perms[0].domid, -1)
        self.root = tree.remove(self.root, path, self._generation())
        below = path + "/"
        for name in [n for n in self.written if n == path or n.startswith(below)]:
            del self.written[name]
        if tree.find(self.base, path) is not None:
            self.removed[path] = None

    def _count(self, domid: int, change: int) -> None:
        self.owned[domid] = self.owned.get(domid, 0) + change

    def changed(self, path: str, seen: tuple[Perms, ...], exact: bool = False) -> None:
        """Tell watchers about a path at commit, once however often it changes until then."""
        event = self.events.get(path)
        if event is None:
            self.events[path] = Event(path, exact, seen)
            return
        event.exact = event.exact and exact
        # The oldest permissions and the newest: what was in between nobody else ever saw.
        event.seen = (*event.seen[:2], *seen)

    def apply(self, root: Node) -> Node:
        """These edits made to another tree that agrees in all that they depend on.

        Removals come first: what was written below a removed path and not removed again is in
        `written`. One removed path may lie below another.
        """
        for path in self.removed:
            if tree.find(root, path) is not None:
                root = tree.remove(root, path, self._generation())
        for path, (value, perms) in self.written.items():
            root = tree.put(root, path, value, perms, self._generation())
        return root
