"""The store: the live tree, and the one place where a view becomes visible."""

from collections.abc import Callable, Iterable
from itertools import count

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.xenstored import tree
from pyxen.xenstored.operations import Limits
from pyxen.xenstored.permissions import DOM0_ONLY, Caller, Perms
from pyxen.xenstored.quotas import Quotas
from pyxen.xenstored.transactions import Transaction
from pyxen.xenstored.tree import Node
from pyxen.xenstored.view import Event, View


def count_owners(root: Node) -> dict[int, int]:
    """How many nodes each domain owns."""
    owned: dict[int, int] = {}
    for _, node in tree.walk(root, "/"):
        domid = node.perms[0].domid
        owned[domid] = owned.get(domid, 0) + 1
    return owned


class Store:
    """The live tree.

    `persist` is called with a view before it becomes visible; it may raise, and then nothing
    happened. `publish` is called with the events after it became visible.
    """

    def __init__(
        self,
        quotas: Quotas,
        persist: Callable[[View], None] = lambda view: None,
        publish: Callable[[Iterable[Event]], None] = lambda events: None,
        first_generation: int = 1,
    ) -> None:
        self.quotas = quotas
        self.generation = count(first_generation).__next__
        self.root = Node(b"", DOM0_ONLY, self.generation())
        self.owned = {0: 1}
        self.limits = Limits(quotas, self.owned)
        self._persist = persist
        self._publish = publish

    def load(self, root: Node) -> None:
        """Start from a tree that was read from the journal."""
        self.root = root
        self.owned.clear()
        self.owned.update(count_owners(root))

    def view(self) -> View:
        """The tree as it is, for one request."""
        return View(self.root, self.generation)

    def transaction(self, caller: Caller, doomed: bool = False) -> Transaction:
        """The tree as it is, for many requests."""
        limit = None if caller.privileged else self.quotas.transaction_nodes
        return Transaction(self.root, self.generation, limit, doomed)

    def commit(
        self,
        view: View,
        caller: Caller,
        persist: Callable[[View], None] | None = None,
        done: Callable[[], None] = lambda: None,
    ) -> None:
        """Make a view visible.

        Args:   persist: instead of the store's own.
                done: called when the view is live and before its events are published.
        Raises: XenError(EAGAIN) if it conflicts with what became visible since its start,
                XenError(ENOSPC) if the caller's nodes exceed its quota by now,
                and what `persist` raises.
        """
        if isinstance(view, Transaction):
            view.check_commit(self.root)
        if view.root is view.base and persist is None:
            return
        if view.created:
            self.limits.check_count(view, caller, 0)
        root = view.root if self.root is view.base else view.apply(self.root)
        (persist or self._persist)(view)
        # COMMIT
        self.root = root
        for domid, change in view.owned.items():
            left = self.owned.get(domid, 0) + change
            if left:
                self.owned[domid] = left
            else:
                self.owned.pop(domid, None)
        done()
        self._publish(view.events.values())

    def special_perms(self, name: str) -> Perms:
        """Who may be told of @introduceDomain or @releaseDomain."""
        node = tree.find(self.root, "/" + name)
        return DOM0_ONLY if node is None else node.perms

    def check(self) -> None:
        """Compare the counts with the tree. Raises XenError(EIO) if they disagree."""
        if count_owners(self.root) != self.owned:
            raise XenError(E.IO, "node counts disagree with the tree")
