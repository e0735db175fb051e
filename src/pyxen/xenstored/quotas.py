"""What a guest may take of xenstore. Domid 0 is exempt. Defaults are those of Xen 4.17."""

from dataclasses import dataclass, fields

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto.xs import XENSTORE_REL_PATH_MAX


@dataclass(slots=True)
class Quotas:
    """The limits; numbers, and bytes for `node_size` and `path_max`."""

    nodes: int = 1000
    watches: int = 128
    transactions: int = 10
    outstanding: int = 20
    transaction_nodes: int = 1024
    node_size: int = 2048
    path_max: int = XENSTORE_REL_PATH_MAX
    permissions: int = 5

    def set(self, name: str, value: int) -> None:
        """Change a limit by its name on the wire. Raises XenError(EINVAL)."""
        key = name.replace("-", "_")
        if key not in (f.name for f in fields(self)) or value < 1:
            raise XenError(E.INVAL, f"quota {name}")
        if key == "path_max":
            value = min(value, XENSTORE_REL_PATH_MAX)
        setattr(self, key, value)

    def items(self) -> list[tuple[str, int, str]]:
        """(name on the wire, value, meaning) of each."""
        return [
            (f.name.replace("_", "-"), getattr(self, f.name), MEANING[f.name]) for f in fields(self)
        ]


MEANING = {
    "nodes": "Nodes per domain",
    "watches": "Watches per domain",
    "transactions": "Open transactions per domain",
    "outstanding": "Unanswered requests per domain",
    "transaction_nodes": "Nodes touched per transaction",
    "node_size": "Bytes per node",
    "path_max": "Bytes per path",
    "permissions": "Permissions per node",
}

# struct xs_tdb_record_hdr and struct xs_permissions, by which Xen measures a node.
_NODE_OVERHEAD = 24
_PERMISSION_SIZE = 8


def node_size(value_bytes: int, permissions: int, names_bytes: int) -> int:
    """A node's size as the quota counts it: value, permissions, names of the children."""
    return _NODE_OVERHEAD + _PERMISSION_SIZE * permissions + value_bytes + names_bytes
