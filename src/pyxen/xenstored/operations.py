"""What clients do to nodes: permissions and quotas first, then the edit and its events.

Every function works on a view, so the same code serves single requests and transactions. Paths are
absolute and checked. Errors are those of Xen's C xenstored.
"""

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.xenstored import tree
from pyxen.xenstored.permissions import (
    OWNER,
    READ,
    WRITE,
    Caller,
    Perms,
    access_of,
    inherited,
    without,
)
from pyxen.xenstored.quotas import Quotas, node_size
from pyxen.xenstored.tree import Node, child_path, parent_path
from pyxen.xenstored.view import View

SPECIAL_PATHS = ("@introduceDomain", "@releaseDomain")


def read(view: View, caller: Caller, path: str) -> bytes:
    """A node's value. Raises XenError(ENOENT, EACCES)."""
    return _node(view, caller, path, READ).value


def directory(view: View, caller: Caller, path: str) -> list[str]:
    """The names of a node's children, sorted. Raises XenError(ENOENT, EACCES)."""
    node = _node(view, caller, path, READ)
    view.listed(path)
    return node.names()


def directory_generation(view: View, caller: Caller, path: str) -> tuple[int, list[str]]:
    """As `directory`, with a number that changes whenever the list does."""
    node = _node(view, caller, path, READ)
    view.listed(path)
    return node.listing, node.names()


def get_perms(view: View, caller: Caller, path: str) -> Perms:
    """A node's permissions. Raises XenError(ENOENT, EACCES)."""
    return _node(view, caller, path, READ).perms


def write(view: View, caller: Caller, path: str, value: bytes, limits: "Limits") -> None:
    """Set a node's value, creating it and its parents. Raises XenError(EACCES, ENOSPC)."""
    node = _node_or_nothing(view, caller, path, WRITE)
    if node is None:
        _create(view, caller, path, value, limits)
        return
    limits.check_size(caller, len(value), len(node.perms), node.names_bytes)
    # COMMIT
    view.put(path, value, node.perms, node)
    view.changed(path, (node.perms, _perms_of_parent(view, path)))


def mkdir(view: View, caller: Caller, path: str, limits: "Limits") -> None:
    """Create a node and its parents unless it exists. Raises XenError(EACCES, ENOSPC)."""
    if _node_or_nothing(view, caller, path, WRITE) is None:
        _create(view, caller, path, b"", limits)


def rm(view: View, caller: Caller, path: str) -> None:
    """Remove a node and all below it; nothing happens if only its parent exists.

    Raises: XenError(ENOENT) if there is no parent either, EACCES, EINVAL for the root.
    """
    node = _node_or_nothing(view, caller, path, WRITE)
    if node is None:
        if view.node(parent_path(path)) is None:
            raise XenError(E.NOENT, path)
        return
    if path == "/":
        raise XenError(E.INVAL, "the root stays")
    view.subtree(path)
    # COMMIT
    _remove(view, path, node)


def set_perms(view: View, caller: Caller, path: str, perms: Perms, limits: "Limits") -> None:
    """Set a node's permissions.

    `path` may be one of SPECIAL_PATHS: who may learn of domains coming and going.
    Raises: XenError(ENOENT, EACCES), EPERM if a guest gives its node away, ENOSPC for too many.
    """
    if not caller.privileged and len(perms) > limits.quotas.permissions:
        raise XenError(E.NOSPC, "too many permissions")
    if path.startswith("@"):
        if path not in SPECIAL_PATHS:
            raise XenError(E.INVAL, path)
        path = "/" + path
    node = _node(view, caller, path, WRITE | OWNER)
    if not caller.privileged and perms[0].domid != node.perms[0].domid:
        raise XenError(E.PERM, "a guest cannot give a node away")
    limits.check_size(caller, len(node.value), len(perms), node.names_bytes)
    # COMMIT
    view.put(path, node.value, perms, node)
    view.changed(path, (node.perms, _perms_of_parent(view, path), perms))


def forget_domain(view: View, domid: int) -> None:
    """Remove what a domain owned and every permission it had: its domid may come again."""
    stack = [("/", view.root)]
    while stack:
        path, node = stack.pop()
        if node.perms[0].domid == domid and path != "/":
            _remove(view, path, node)
        else:
            stack += [(child_path(path, n), c) for n, c in node.children.items()]
    for path, node in tree.walk(view.root, "/"):
        if any(p.domid == domid for p in node.perms):
            view.put(path, node.value, without(node.perms, domid), node)


class Limits:
    """The quotas as one view meets them: `owned` counts the live nodes of each domain."""

    __slots__ = ("owned", "quotas")

    def __init__(self, quotas: Quotas, owned: dict[int, int]) -> None:
        self.quotas = quotas
        self.owned = owned

    def check_size(self, caller: Caller, value: int, permissions: int, names: int) -> None:
        """Refuse a guest a node that is too large. Raises XenError(ENOSPC)."""
        if caller.privileged:
            return
        if node_size(value, permissions, names) >= self.quotas.node_size:
            raise XenError(E.NOSPC, "node too large")

    def check_count(self, view: View, caller: Caller, more: int) -> None:
        """Refuse a guest more nodes than it may have. Raises XenError(ENOSPC)."""
        domid = caller.domid
        if caller.privileged:
            return
        count = self.owned.get(domid, 0) + view.owned.get(domid, 0)
        if count + more > self.quotas.nodes:
            raise XenError(E.NOSPC, "too many nodes")


def _node(view: View, caller: Caller, path: str, wanted: int) -> Node:
    node = _node_or_nothing(view, caller, path, wanted)
    if node is None:
        raise XenError(E.NOENT, path)
    return node


def _node_or_nothing(view: View, caller: Caller, path: str, wanted: int) -> Node | None:
    """A node on which the caller has all of `wanted`; None if the caller may know it is missing.

    Raises XenError(EACCES): a caller learns of a missing node only if the nearest node above it
    grants any of what is wanted, and never the difference between missing and forbidden otherwise.
    """
    node = view.node(path)
    if caller.domid == 0:
        return node
    if node is None:
        if access_of(caller, _nearest(view, path)[1].perms) & wanted == 0:
            raise XenError(E.ACCES, path)
    elif access_of(caller, node.perms) & wanted != wanted:
        raise XenError(E.ACCES, path)
    return node


def _nearest(view: View, path: str) -> tuple[str, Node]:
    """The lowest existing node above a path."""
    while True:
        path = parent_path(path)
        node = view.node(path)
        if node is not None:
            return path, node


def _create(view: View, caller: Caller, path: str, value: bytes, limits: Limits) -> None:
    above, parent = _nearest(view, path)
    names = path[len(above) :].strip("/").split("/")
    limits.check_count(view, caller, len(names))
    entries = len(parent.perms)
    limits.check_size(
        caller, len(parent.value), entries, parent.names_bytes + len(names[0].encode()) + 1
    )
    limits.check_size(caller, len(value), entries, 0)
    perms = inherited(caller, parent.perms)
    # COMMIT
    view.create(above, names, value, perms)
    view.changed(path, (perms, perms if len(names) > 1 else parent.perms))


def _remove(view: View, path: str, node: Node) -> None:
    below = list(tree.walk(node, path))
    perms_of = {name: gone.perms for name, gone in below}
    above = _perms_of_parent(view, path)
    # Deepest first, and the removed node itself last: only that one is told to those above.
    for name, gone in reversed(below):
        seen = (gone.perms, perms_of.get(parent_path(name), above))
        view.changed(name, seen, exact=name != path)
    view.remove(path)


def _perms_of_parent(view: View, path: str) -> Perms:
    parent = tree.find(view.root, parent_path(path))
    assert parent is not None
    return parent.perms
