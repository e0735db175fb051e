"""The tree of nodes as a persistent data structure.

A node that was ever visible is never changed: an edit copies the nodes from the root down to the
edited one and shares all others. A snapshot is therefore just a root, a transaction starts for
nothing, and "was anything below this path changed?" is an identity test.

Functions take absolute, checked paths. Nothing recurses: a path can be a thousand levels deep.
"""

from collections.abc import Iterator

from pyxen.xenstored.permissions import Perms


class Node:
    """One node.

    `generation` changes with value and permissions, `listing` with the set of children's names;
    `names_bytes` is the length of those names with a nul after each.
    """

    __slots__ = ("children", "generation", "listing", "names_bytes", "perms", "value")

    def __init__(
        self,
        value: bytes,
        perms: Perms,
        generation: int,
        children: dict[str, "Node"] | None = None,
        listing: int = 0,
        names_bytes: int = 0,
    ) -> None:
        self.value = value
        self.perms = perms
        self.generation = generation
        self.children = {} if children is None else children
        self.listing = listing
        self.names_bytes = names_bytes

    def names(self) -> list[str]:
        """The children's names, sorted."""
        return sorted(self.children)

    def _copy(self) -> "Node":
        return Node(
            self.value,
            self.perms,
            self.generation,
            self.children.copy(),
            self.listing,
            self.names_bytes,
        )


def split(path: str) -> list[str]:
    """The names on the way from the root to a path."""
    return path.split("/")[1:] if path != "/" else []


def parent_path(path: str) -> str:
    """The path one level up; that of the root is the root."""
    return path[: path.rindex("/")] or "/"


def child_path(path: str, name: str) -> str:
    """The path of a child."""
    return f"/{name}" if path == "/" else f"{path}/{name}"


def find(root: Node, path: str) -> Node | None:
    """The node at a path, or None."""
    node: Node | None = root
    for name in split(path):
        node = node.children.get(name)  # type: ignore[union-attr]
        if node is None:
            return None
    return node


def _spine(root: Node, names: list[str]) -> list[Node]:
    """Copies of the nodes from the root to the parent of the last name, linked to each other."""
    node = root._copy()
    spine = [node]
    for name in names[:-1]:
        below = node.children[name]._copy()
        node.children[name] = below
        node = below
        spine.append(node)
    return spine


def put(root: Node, path: str, value: bytes, perms: Perms, generation: int) -> Node:
    """The tree with a node's value and permissions set; the node's parent has to exist."""
    names = split(path)
    if not names:
        copy = root._copy()
        copy.value, copy.perms, copy.generation = value, perms, generation
        return copy
    spine = _spine(root, names)
    put_child(spine[-1], names[-1], value, perms, generation)
    return spine[0]


def put_chain(
    root: Node, above: str, names: list[str], value: bytes, perms: Perms, generation: int
) -> Node:
    """The tree with new nodes, each the child of the one before, below the existing `above`.

    The last has the value, the others are empty. One copy of the way down serves them all: a guest
    could otherwise buy quadratic work with one request for a deep path.
    """
    spine = _spine(root, [*split(above), names[0]])
    node = spine[-1]
    for name in names[:-1]:
        put_child(node, name, b"", perms, generation)
        node = node.children[name]
    put_child(node, names[-1], value, perms, generation)
    return spine[0]


def put_child(parent: Node, name: str, value: bytes, perms: Perms, generation: int) -> None:
    """Set a child of a node that nobody else sees yet (a copy, or a tree being loaded)."""
    old = parent.children.get(name)
    if old is None:
        parent.children[name] = Node(value, perms, generation, listing=generation)
        parent.listing = generation
        parent.names_bytes += len(name) + 1
    else:
        parent.children[name] = Node(
            value, perms, generation, old.children, old.listing, old.names_bytes
        )


def remove(root: Node, path: str, generation: int) -> Node:
    """The tree without a node and what is below it; that node exists and is not the root."""
    names = split(path)
    spine = _spine(root, names)
    remove_child(spine[-1], names[-1], generation)
    return spine[0]


def remove_child(parent: Node, name: str, generation: int) -> None:
    """Take a child from a node that nobody else sees yet."""
    del parent.children[name]
    parent.listing = generation
    parent.names_bytes -= len(name) + 1


def walk(node: Node, path: str) -> Iterator[tuple[str, Node]]:
    """A node and all below it with their paths, parents before children, names in order."""
    stack = [(path, node)]
    while stack:
        path, node = stack.pop()
        yield path, node
        for name in sorted(node.children, reverse=True):
            stack.append((child_path(path, name), node.children[name]))
