"""Names for addresses, from each of the three sources."""

import struct
from pathlib import Path

import pytest
from kernel_maker import elf, notes

from pyxen.builder.elf import SHT_STRTAB, SHT_SYMTAB
from pyxen.builder.symbols import Symbol, find_symbols, system_map_beside

BASE = 0xFFFF_FFFF_8100_0000
NAMES = [f"{'T' if n % 3 else 'd'}function_{n}" for n in range(2000)]
NAMES[1234] = "t" + "long_name_" * 20


def tables(layout: str, *, absolute_percpu: bool = True) -> bytes:
    """The kallsyms tables of NAMES at BASE, BASE + 16, …; two of them share an address."""
    tokens = [chr(n) if chr(n).isalnum() or n == ord("_") else "unused" for n in range(256)]
    tokens[0] = "function_"
    names, markers = b"", []
    for n, name in enumerate(NAMES):
        if n % 256 == 0:
            markers.append(len(names))
        coded = name.encode().replace(b"function_", b"\0")
        long = len(coded) > 127
        length = struct.pack("BB", len(coded) & 127 | 128, len(coded) >> 7)
        names += (length if long else bytes([len(coded)])) + coded
    index, table = b"", b""
    for token in tokens:
        index += struct.pack("<H", len(table))
        table += token.encode() + b"\0"
    offsets = [16 * n for n in range(len(NAMES))]
    offsets[11] = offsets[10]
    if absolute_percpu:
        offsets = [0, 64] + [-1 - n for n in offsets[2:]]
    parts = {
        "offsets": struct.pack(f"<{len(offsets)}i", *offsets),
        "base": struct.pack("<Q", BASE),
        "count": struct.pack("<Q", len(NAMES)),
        "names": names,
        "markers": struct.pack(f"<{len(markers)}I", *markers),
        "seqs": b"\x07\x01\x02" * len(NAMES),
        "table": table,
        "index": index,
    }
    out = b"\x5a" * 4096
    for part in layout.split():
        out += parts[part] + bytes(-len(parts[part]) % 8)
    return out + b"\x5a" * 4096


LAYOUTS = {
    "6.1": "offsets base count names markers table index",
    "6.1 stable": "offsets base count names markers seqs table index",
    "6.12": "count names markers table index offsets base seqs",
}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS.keys())
@pytest.mark.parametrize("absolute_percpu", [True, False])
def test_kallsyms(layout: str, absolute_percpu: bool) -> None:
    image = elf(
        notes(), segments=[(0x10_0000, tables(layout, absolute_percpu=absolute_percpu), 1 << 20)]
    )
    symbols = find_symbols(image)
    assert symbols is not None
    assert symbols.source == "kallsyms"
    assert len(symbols) == len(NAMES)
    assert symbols.lookup(BASE + 16 * 500 + 7) == Symbol("function_500", 7)
    assert str(symbols.lookup(BASE + 16 * 1234)) == f"{'long_name_' * 20}+0x0"
    assert symbols.lookup(BASE + 16 * 10 + 3) == Symbol("function_10", 3)
    assert symbols.lookup(BASE + 16 * 600) == Symbol("function_600", 0, code=False)
    assert symbols.address_of("function_1999") == BASE + 16 * 1999
    assert symbols.lookup(BASE + (64 << 20)) is None


def test_damaged_kallsyms_are_not_believed() -> None:
    for layout in LAYOUTS.values():
        good = tables(layout)
        for at in range(4096, len(good) - 4096, 397):
            broken = bytearray(good)
            broken[at : at + 8] = b"\xff" * 8
            find_symbols(elf(notes(), segments=[(0x10_0000, bytes(broken), 1 << 20)]))


def symtab_image() -> bytes:
    strings = b"\0start\0handler\0file.c\0"
    entries = bytes(24)
    for name, info, section, value in (
        (1, 0x12, 1, 0x1000),
        (7, 0x12, 1, 0x1100),
        (15, 0x04, 0xFFF1, 0x1050),
        (7, 0x12, 0, 0x1200),
        (7, 0x11, 1, 0x2000),
    ):
        entries += struct.pack("<IBBHQQ", name, info, 0, section, value, 0)
    sections = [(b".symtab", SHT_SYMTAB, entries), (b".strtab", SHT_STRTAB, strings)]
    return elf(notes(), sections=sections)


def test_the_elf_symbol_table() -> None:
    symbols = find_symbols(symtab_image())
    assert symbols is not None
    assert symbols.lookup(0x10FF) == Symbol("start", 0xFF)
    assert symbols.lookup(0x1205) == Symbol("handler", 0x105)
    assert symbols.lookup(0x2001) == Symbol("handler", 1, code=False)
    assert symbols.lookup(0xFFF) is None


def test_system_map_wins_and_a_stub_does_not(tmp_path: Path) -> None:
    (tmp_path / "vmlinuz-6.1").write_bytes(b"")
    assert system_map_beside(tmp_path / "vmlinuz-6.1") is None
    path = tmp_path / "System.map-6.1"
    path.write_text("ffffffff81000000 T _text\nffffffff81000100 t inner\n")
    assert system_map_beside(tmp_path / "vmlinuz-6.1") == path
    symbols = find_symbols(symtab_image(), path)
    assert symbols is not None
    assert symbols.lookup(0xFFFF_FFFF_8100_0123) == Symbol("inner", 0x23)
    path.write_text("ffffffffffffffff B The real System.map is elsewhere\n")
    symbols = find_symbols(symtab_image(), path)
    assert symbols is not None
    assert symbols.source == "symbol table"


def test_nothing_found_is_none(tmp_path: Path) -> None:
    path = tmp_path / "System.map"
    path.write_bytes(b"\xff\xfe junk\n" * 10)
    assert find_symbols(elf(notes()), path) is None
    assert find_symbols(b"no ELF file") is None
    assert find_symbols(elf(notes()), tmp_path / "missing") is None
