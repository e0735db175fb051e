"""An import goes down or sideways, never up: check_imports.py SOURCE.

The layers of ARCHITECTURE.md, from the bottom. A module may import from its own layer's package
and from every layer below it.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path

LAYERS = [
    {"types", "abi", "errors"},
    {"proto", "config", "paths", "image", "bootloader"},
    {"memory"},
    {"cpu"},
    {"hypervisor"},
    {"builder", "backend"},
    {"xenstored", "domain"},
    {"toolstack", "xend"},
    {"xl", "cli"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
SIDEWAYS = {frozenset({"toolstack", "xend"}), frozenset({"errors", "abi"}), frozenset({"abi", "types"})}


def imports(path: Path) -> list[tuple[int, str]]:
    """(line, dotted name) of everything a module imports from pyxen."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [node.module]
            if node.module == "pyxen":
                names = [f"pyxen.{alias.name}" for alias in node.names]
            found += [(node.lineno, name) for name in names]
        elif isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append((node.lineno, "relative"))
    return [(line, name) for line, name in found if name.split(".")[0] in ("pyxen", "relative")]


def problems(source: Path) -> list[str]:
    """What breaks the rule, a line each."""
    result = []
    for path in sorted(source.rglob("*.py")):
        own = path.relative_to(source).parts[0].removesuffix(".py")
        for line, name in imports(path):
            other = name.split(".")[1] if "." in name else ""
            if name == "relative":
                result.append(f"{path}:{line}: relative import")
            elif own in RANK and other in RANK and not allowed(own, other):
                result.append(f"{path}:{line}: {own} may not import {other}")
            elif own not in RANK and own != "__init__":
                result.append(f"{path}:{line}: {own} has no layer in {sys.argv[0]}")
    return result


def allowed(own: str, other: str) -> bool:
    """Whether a module of package `own` may import package `other`."""
    return own == other or RANK[other] < RANK[own] or frozenset({own, other}) in SIDEWAYS


if __name__ == "__main__":
    found = problems(Path(sys.argv[1]))
    print("\n".join(found))
    sys.exit(bool(found))
