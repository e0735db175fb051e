"""Kernel modules for an initramfs: find them in a package's tree with all that they depend on."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.errors import UserError

_INFO: Final = re.compile(rb"\0(depends|alias)=([^\0]*)(?=\0)")


@dataclass(frozen=True, slots=True)
class Module:
    """A kernel module. `data` is the uncompressed file."""

    name: str
    data: bytes
    depends: tuple[str, ...]
    aliases: tuple[str, ...]


def collect_modules(tree: Path, wanted: tuple[str, ...]) -> list[Module]:
    """The wanted modules below `tree`/lib/modules with their dependencies, each after its own.

    A module that is not there is built into the kernel, or the kernel has none: left out.
    """
    files = {}
    for directory in ("lib/modules", "usr/lib/modules"):
        for path in (tree / directory).glob("*/kernel/**/*.ko*"):
            files[_module_name(path.name.partition(".ko")[0])] = path
    found: dict[str, Module] = {}
    seen: set[str] = set()

    def add(name: str) -> None:
        if name in seen or name not in files:
            return
        seen.add(name)
        module = _read_module(name, files[name])
        for other in module.depends:
            add(other)
        found[name] = module

    for name in wanted:
        add(_module_name(name))
    return list(found.values())


def dependency_files(modules: Sequence[Module]) -> dict[str, bytes]:
    """modules.dep and modules.alias, as modprobe reads them; the files lie beside them."""
    dep = "".join(
        f"{m.name}.ko: {' '.join(f'{other}.ko' for other in _all_depends(m, modules))}".rstrip()
        + "\n"
        for m in modules
    )
    alias = "".join(f"alias {alias} {m.name}\n" for m in modules for alias in m.aliases)
    return {"modules.dep": dep.encode(), "modules.alias": alias.encode()}


def _all_depends(module: Module, modules: Sequence[Module]) -> list[str]:
    """Every module that has to be there first; modprobe loads from the end of the list.

    `modules` is in loading order, so one pass from the end finds everything.
    """
    wanted = set(module.depends)
    needed = []
    for other in reversed(modules):
        if other.name in wanted:
            needed.append(other.name)
            wanted.update(other.depends)
    return needed


def _module_name(name: str) -> str:
    return name.replace("-", "_")


def _read_module(name: str, path: Path) -> Module:
    data = path.read_bytes()
    if path.suffix == ".xz":
        data = lzma.decompress(data)
    elif path.suffix == ".zst":
        import zstandard

        data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
    elif path.suffix == ".gz":
        import gzip

        data = gzip.decompress(data)
    if not data.startswith(b"\x7fELF"):
        raise UserError(f"{path} is not a kernel module")
    info: dict[bytes, list[str]] = {b"depends": [], b"alias": []}
    for key, value in _INFO.findall(data):
        info[key].append(value.decode())
    depends = [_module_name(d) for line in info[b"depends"] for d in line.split(",") if d]
    return Module(name, data, tuple(depends), tuple(info[b"alias"]))
