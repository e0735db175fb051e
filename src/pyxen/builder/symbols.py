"""Names for addresses of a guest kernel, for crash reports. Best effort: nothing here raises.

Three sources, the first that has something: a System.map file, the ELF file's symbol table, the
kallsyms tables inside a stripped Linux kernel.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.builder.elf import SHT_SYMTAB, Elf
from pyxen.builder.kallsyms import find_kallsyms
from pyxen.errors import UserError
from pyxen.types import U64

_MAX_MAP_BYTES: Final = 64 << 20
_MAX_SYMBOLS: Final = 1 << 21
_MAX_OFFSET: Final = 1 << 20
_CODE: Final = frozenset("tTwW")
_STT_OBJECT: Final = 1
_STT_SECTION: Final = 3
_STT_FILE: Final = 4


@dataclass(frozen=True, slots=True)
class Symbol:
    """The symbol that an address belongs to.

    offset: distance from the symbol's start in bytes.
    code:   whether it is a function: a return address on the stack points into one.
    """

    name: str
    offset: int
    code: bool = True

    def __str__(self) -> str:
        return f"{self.name}+{self.offset:#x}"


class SymbolTable:
    """Symbols in the order of their addresses.

    source: where they came from, for the report.
    """

    def __init__(
        self, source: str, addresses: Sequence[int], name_of: Callable[[int], tuple[str, str]]
    ) -> None:
        self.source = source
        self._addresses = addresses
        self._name_of = name_of

    def __len__(self) -> int:
        return len(self._addresses)

    def lookup(self, vaddr: int) -> Symbol | None:
        """The nearest symbol at or below an address, unless it is more than 1 MiB away."""
        index = bisect_right(self._addresses, vaddr) - 1
        if index < 0:
            return None
        start = self._addresses[index]
        if vaddr - start >= _MAX_OFFSET:
            return None
        while index and self._addresses[index - 1] == start:  # of aliases, the first
            index -= 1
        kind, name = self._name_of(index)
        return Symbol(name, vaddr - start, kind in _CODE)

    def address_of(self, name: str) -> int | None:
        """The address of the first symbol of this name. Slow: looks at every one."""
        for index, address in enumerate(self._addresses):
            if self._name_of(index)[1] == name:
                return address
        return None


def find_symbols(image: bytes, system_map: Path | None = None) -> SymbolTable | None:
    """The symbols of a kernel, or None.

    image:      the uncompressed kernel, as KernelImage.image.
    system_map: a file that came with the kernel, if any; a distribution's stub is ignored.
    """
    try:
        return (
            (system_map and _from_system_map(system_map))
            or _from_symtab(image)
            or _from_kallsyms(image)
            or None
        )
    except (OSError, UserError, ValueError, struct.error, IndexError, MemoryError):
        return None


def system_map_beside(kernel: Path) -> Path | None:
    """The System.map-VERSION next to a vmlinuz-VERSION, if there is one."""
    _, dash, version = kernel.name.partition("-")
    candidate = kernel.with_name(f"System.map-{version}" if dash else "System.map")
    return candidate if candidate.is_file() else None


def _from_list(source: str, found: list[tuple[int, str, str]]) -> SymbolTable | None:
    """From (address, kind, name). Debian's System.map has one line, which names the real one."""
    if len(found) < 2:
        return None
    found.sort(key=lambda item: item[0])
    return SymbolTable(source, [item[0] for item in found], lambda index: found[index][1:])


def _from_system_map(path: Path) -> SymbolTable | None:
    with path.open(encoding="latin-1") as file:
        lines = file.read(_MAX_MAP_BYTES).splitlines()
    found = []
    for line in lines[:_MAX_SYMBOLS]:
        words = line.split()
        if len(words) >= 3:
            address = int(words[0], 16)
            if 0 < address < U64:
                found.append((address, words[1], words[2]))
    return _from_list(str(path), found)


def _from_symtab(image: bytes) -> SymbolTable | None:
    elf = Elf(image, "kernel")
    table = next((s for s in elf.sections if s.type == SHT_SYMTAB), None)
    if table is None or table.link >= len(elf.sections):
        return None
    names = elf.content(elf.sections[table.link])
    layout = struct.Struct("<IBBHQQ" if elf.bits == 64 else "<IIIBBH")
    data = elf.content(table)
    count = min(len(data) // layout.size, _MAX_SYMBOLS)
    found = []
    for fields in layout.iter_unpack(data[: count * layout.size]):
        if elf.bits == 64:
            name, info, _other, section, value, _size = fields
        else:
            name, value, _size, info, _other, section = fields
        if section and value and info & 15 not in (_STT_SECTION, _STT_FILE):
            text = names[name : names.find(b"\0", name)]
            if text:
                kind = "d" if info & 15 == _STT_OBJECT else "t"  # assembly often says neither
                found.append((value, kind, text.decode("latin-1")))
    return _from_list("symbol table", found)


def _from_kallsyms(image: bytes) -> SymbolTable | None:
    found = find_kallsyms(image)
    return SymbolTable("kallsyms", found.addresses, found.name) if found else None
