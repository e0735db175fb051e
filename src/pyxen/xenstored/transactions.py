"""Transactions: a view that knows what it depends on.

A commit fails with EAGAIN if, since the transaction began, somebody else changed anything that the
transaction read or wrote, and only then: two transactions that create different children of one
node don't disturb each other, nor does one that only read. What was read is a true snapshot.
"""

from collections.abc import Callable

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.xenstored import tree
from pyxen.xenstored.tree import Node
from pyxen.xenstored.view import View

_CONTENT = 1
_LISTING = 2
_SUBTREE = 4


class Transaction(View):
    """One open transaction.

    `limit` bounds the paths it may touch (None: no bound); exceeding it makes the commit fail with
    ENOMEM, as in Xen. `doomed` is a transaction of a xenstored that is gone: it works, but on a
    fresh snapshot, and its commit fails with EAGAIN so that the client does it again.
    """

    __slots__ = ("_accessed", "_limit", "doomed", "failed")

    def __init__(
        self,
        base: Node,
        generation: Callable[[], int],
        limit: int | None = None,
        doomed: bool = False,
    ) -> None:
        super().__init__(base, generation)
        self._accessed: dict[str, int] = {}
        self._limit = limit
        self.doomed = doomed
        self.failed = False

    def _access(self, path: str, kind: int) -> None:
        accessed = self._accessed
        known = accessed.get(path)
        if known is None:
            if self._limit is not None and len(accessed) >= self._limit:
                self.failed = True
                raise XenError(E.NOSPC, "too many nodes in a transaction")
            accessed[path] = kind
        else:
            accessed[path] = known | kind

    def node(self, path: str) -> Node | None:
        self._access(path, _CONTENT)
        return tree.find(self.root, path)

    def listed(self, path: str) -> None:
        self._access(path, _LISTING)

    def subtree(self, path: str) -> None:
        self._access(path, _SUBTREE)

    def check_commit(self, root: Node) -> None:
        """Whether this can be applied to the live tree.

        Raises: XenError(EAGAIN) on a conflict, XenError(ENOMEM) if it outgrew its limit.
        """
        if self.failed:
            raise XenError(E.NOMEM, "the transaction exceeded its quota")
        if self.doomed:
            raise XenError(E.AGAIN, "the transaction's xenstored is gone")
        # A view that changes nothing was consistent at its start: that is its place in the order.
        if root is self.base or self.root is self.base:
            return
        for path, kind in self._accessed.items():
            if _differs(tree.find(self.base, path), tree.find(root, path), kind):
                raise XenError(E.AGAIN, path)


def _differs(before: Node | None, now: Node | None, kind: int) -> bool:
    if before is now:
        return False
    if before is None or now is None or kind & _SUBTREE:
        return True
    return before.generation != now.generation or (
        kind & _LISTING != 0 and before.listing != now.listing
    )
