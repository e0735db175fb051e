"""Makes small Xen kernels for the tests: an ELF file with the wanted notes, packed as wanted."""

import bz2
import gzip
import lzma
import struct
from collections.abc import Iterable

from pyxen.abi import elfnote

VIRT_BASE = 0xFFFF_FFFF_8000_0000
TEXT = bytes(range(256)) * 40

NUMBERS = {
    elfnote.XEN_ELFNOTE_ENTRY: VIRT_BASE + 0x10_0010,
    elfnote.XEN_ELFNOTE_VIRT_BASE: VIRT_BASE,
    elfnote.XEN_ELFNOTE_PADDR_OFFSET: 0,
    elfnote.XEN_ELFNOTE_INIT_P2M: 0x80_0000_0000,
    elfnote.XEN_ELFNOTE_MOD_START_PFN: 1,
}
STRINGS = {
    elfnote.XEN_ELFNOTE_XEN_VERSION: "xen-3.0",
    elfnote.XEN_ELFNOTE_LOADER: "generic",
    elfnote.XEN_ELFNOTE_GUEST_OS: "test",
    elfnote.XEN_ELFNOTE_FEATURES: "!writable_page_tables|pae_pgdir_above_4gb",
}


def note(kind: int, desc: bytes, name: bytes = b"Xen\0") -> bytes:
    """One ELF note with its padding."""
    pad = bytes(-len(desc) % 4)
    return (
        struct.pack("<III", len(name), len(desc), kind) + name + bytes(-len(name) % 4) + desc + pad
    )


def notes(changes: dict[int, int | str | bytes | None] | None = None) -> bytes:
    """The usual notes with some changed; None leaves one out."""
    wanted: dict[int, int | str | bytes | None] = {**NUMBERS, **STRINGS, **(changes or {})}
    out = b""
    for kind, value in wanted.items():
        if isinstance(value, int):
            out += note(kind, struct.pack("<Q", value))
        elif isinstance(value, str):
            out += note(kind, value.encode() + b"\0")
        elif value is not None:
            out += note(kind, value)
    return out


def elf(
    note_bytes: bytes,
    *,
    segments: Iterable[tuple[int, bytes, int]] = ((0x10_0000, TEXT, 0x5000),),
    machine: int = 62,
    entry: int = VIRT_BASE + 0x10_0000,
    sections: Iterable[tuple[bytes, int, bytes]] = (),
) -> bytes:
    """An ELF64 file.

    segments: (paddr, content, size in memory). sections: (name, type, content).
    """
    loads = list(segments)
    count = len(loads) + bool(note_bytes)
    at = 64 + 56 * count
    headers, body = b"", b""
    for paddr, content, size in loads:
        headers += struct.pack(
            "<IIQQQQQQ", 1, 7, at + len(body), VIRT_BASE + paddr, paddr, len(content), size, 4096
        )
        body += content
    if note_bytes:
        headers += struct.pack(
            "<IIQQQQQQ", 4, 4, at + len(body), 0, 0, len(note_bytes), len(note_bytes), 4
        )
        body += note_bytes
    table, body, count_sections = _sections(list(sections), body, at)
    ident = b"\x7fELF\x02\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIQQQIHHHHHH",
        2, machine, 1, entry, 64, at + len(body) if table else 0, 0, 64, 56, count,
        64, count_sections, max(0, count_sections - 1),
    )  # fmt: skip
    return header + headers + body + table


def _sections(
    wanted: list[tuple[bytes, int, bytes]], body: bytes, at: int
) -> tuple[bytes, bytes, int]:
    if not wanted:
        return b"", body, 0
    names = b"\0"
    table = bytes(64)
    for index, (name, kind, content) in enumerate([*wanted, (b".shstrtab", 3, b"")]):
        if name == b".shstrtab":
            content = names + name + b"\0"
        link = index + 2 if kind == 2 else 0  # a symbol table is followed by its strings
        table += struct.pack(
            "<IIQQQQIIQQ", len(names), kind, 0, 0, at + len(body), len(content), link, 0, 1, 24
        )
        names += name + b"\0"
        body += content
    return table, body, len(wanted) + 2


def elf32(note_bytes: bytes) -> bytes:
    """An ELF32 file for i386 with one segment and notes."""
    at = 52 + 32 * 2
    headers = struct.pack("<IIIIIIII", 1, at, 0xC010_0000, 0x10_0000, 64, 64, 7, 4096)
    headers += struct.pack("<IIIIIIII", 4, at + 64, 0, 0, len(note_bytes), len(note_bytes), 4, 4)
    ident = b"\x7fELF\x01\x01\x01" + bytes(9)
    header = ident + struct.pack(
        "<HHIIIIIHHHHHH", 2, 3, 1, 0x10_0000, 52, 0, 0, 52, 32, 2, 40, 0, 0
    )
    return header + headers + bytes(64) + note_bytes


def bzimage(payload: bytes, *, version: int = 0x20F, setup_sectors: int = 4) -> bytes:
    """A bzImage around a payload."""
    setup = bytearray((setup_sectors + 1) * 512)
    setup[0x1F1] = setup_sectors
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", setup, 0x206, version)
    struct.pack_into("<II", setup, 0x248, 64, len(payload))
    return bytes(setup) + bytes(64) + payload + b"trailing"


def compress(name: str, data: bytes) -> bytes:
    """`data` in one of the formats that a library here can write, without the size behind it."""
    if name == "gzip":
        return gzip.compress(data, mtime=0)
    if name == "bzip2":
        return bz2.compress(data)
    if name == "xz":
        x86 = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 1 << 20}]
        return lzma.compress(data, lzma.FORMAT_XZ, lzma.CHECK_CRC32, filters=x86)
    if name == "lzma":
        return lzma.compress(data, lzma.FORMAT_ALONE)
    if name == "lz4":
        from lz4 import block

        out = b"\x02\x21\x4c\x18"
        for at in range(0, len(data), 8 << 20):
            piece = block.compress(data[at : at + (8 << 20)], store_size=False)
            out += struct.pack("<I", len(piece)) + piece
        return out
    if name == "zstd":
        import zstandard

        return zstandard.ZstdCompressor(write_content_size=False).compress(data)
    if name == "lzo":
        return lzop_stored(data)
    raise ValueError(name)


def lzop_stored(data: bytes) -> bytes:
    """An lzop stream whose blocks are stored as they are, as lzop does for what it cannot pack."""
    header = b"\x89LZO\x00\r\n\x1a\n" + struct.pack(">HHHBB", 0x1040, 0x20A0, 0x940, 3, 9)
    header += struct.pack(">IIII", 1, 0o644, 0, 0) + b"\0" + bytes(4)
    blocks = b""
    for at in range(0, len(data), 256 << 10):
        piece = data[at : at + (256 << 10)]
        blocks += struct.pack(">III", len(piece), len(piece), 0) + piece
    return header + blocks + bytes(4)


def packed_kernel(name: str, image: bytes) -> bytes:
    """A bzImage as Linux's build makes it; all but gzip have the size behind the payload."""
    payload = compress(name, image)
    if name != "gzip":
        payload += struct.pack("<I", len(image))
    return bzimage(payload)
