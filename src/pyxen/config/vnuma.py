"""Virtual NUMA nodes: the `vnuma` setting.

    vnuma = [ ["pnode=0", "size=512", "vcpus=0-1", "vdistances=10,20"], … ]

Source: xl.cfg(5) "vnuma".
"""

import re
from collections.abc import Callable

from pyxen.config.cpus import Host
from pyxen.config.devices import VnumaNode
from pyxen.config.number import whole
from pyxen.config.report import nearest
from pyxen.errors import UserError

MAX_VCPUS = 1 << 16
"""More vCPUs than any Xen guest can have; a bound for what a file can make us build."""

MAX_NODES = 64

KEYS = ("pnode", "size", "vcpus", "vdistances")
U32 = (1 << 32) - 1

_RANGE = re.compile(r"\s*(\d{1,9})(?:-\s*(\d{1,9}))?\s*")


def parse_vnuma(nodes: list[list[str]], host: Host, warn: Callable[[str], None]) -> list[VnumaNode]:
    """Read all virtual nodes.

    Raises: UserError (exit code 1).
    """
    if len(nodes) > MAX_NODES:
        raise UserError(f"vnuma: {len(nodes)} nodes are more than {MAX_NODES}", "", 1)
    parsed = []
    for strings in nodes:
        node = VnumaNode(distances=[0] * len(nodes))
        for word in strings:
            _apply(node, word, host, warn)
        parsed.append(node)
    return parsed


def _apply(node: VnumaNode, word: str, host: Host, warn: Callable[[str], None]) -> None:
    key, equals, value = (part.strip() for part in word.partition("="))
    if not equals or not value:
        raise UserError(f"vnuma: {word!r} is not key=value", f"the keys are {', '.join(KEYS)}", 1)
    match key:
        case "pnode":
            node.pnode = _number(word, value)
            if node.pnode >= len(host.nodes):
                hint = f"this host has {len(host.nodes)} NUMA node(s), counted from 0"
                raise UserError(f"vnuma: there is no node {node.pnode}", hint, 1)
        case "size":
            node.memkb = _number(word, value) << 10
        case "vcpus":
            node.vcpus = sorted({cpu for part in value.split(",") for cpu in _vcpus(word, part)})
        case "vdistances":
            distances = [_number(word, part) for part in value.split(",") if part]
            if len(distances) > len(node.distances):
                hint = f"there are {len(node.distances)} nodes, give a distance to each"
                raise UserError(f"vnuma: {word!r} has too many distances", hint, 1)
            node.distances[: len(distances)] = distances
        case _:
            warn(f"vnuma: there is no key {key!r}{nearest(key, KEYS)}; it is ignored")


def _number(word: str, value: str) -> int:
    number = whole(value, 10)
    if number is None or not 0 <= number <= U32:
        raise UserError(f"vnuma: {word!r} needs a number", "", 1)
    return number


def _vcpus(word: str, part: str) -> range:
    match = _RANGE.fullmatch(part)
    first = int(match[1]) if match else -1
    last = int(match[2] or match[1]) if match else -1
    if not 0 <= first <= last < MAX_VCPUS:
        raise UserError(f"vnuma: {word!r} is no set of vCPUs", "write for instance vcpus=0-3", 1)
    return range(first, last + 1)
