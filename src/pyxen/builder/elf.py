"""ELF files: header, program headers, section headers, notes. Checked, bounded, nothing loaded.

Source: System V ABI, chapter 4 and 5 (Object Files, Program Loading).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from pyxen.builder.failure import refuse

PT_LOAD: Final = 1
PT_NOTE: Final = 4
SHT_SYMTAB: Final = 2
SHT_STRTAB: Final = 3
SHT_NOTE: Final = 7
SHT_NOBITS: Final = 8
EM_386: Final = 3
EM_X86_64: Final = 62

_MACHINES: Final = {
    2: "SPARC", 8: "MIPS", 20: "PowerPC", 21: "PowerPC 64", 22: "S/390", 40: "Arm", 43: "SPARC 64",
    183: "AArch64", 243: "RISC-V", 258: "LoongArch",
}  # fmt: skip

_MAX_HEADERS: Final = 4096
_MAX_NOTES: Final = 4096


@dataclass(frozen=True, slots=True)
class Segment:
    """A program header. Addresses and sizes in bytes."""

    type: int
    flags: int
    offset: int
    vaddr: int
    paddr: int
    file_bytes: int
    memory_bytes: int
    align: int


@dataclass(frozen=True, slots=True)
class Section:
    """A section header. `name_offset` points into the section name table."""

    name_offset: int
    type: int
    addr: int
    offset: int
    size_bytes: int
    link: int
    entry_bytes: int


@dataclass(frozen=True, slots=True)
class Note:
    """One ELF note."""

    name: bytes
    type: int
    desc: bytes


class Elf:
    """A parsed ELF file. `data` is the whole file; every offset handed out lies inside of it."""

    def __init__(self, data: bytes, name: str) -> None:
        """Raises UserError if this is no little-endian ELF file with usable program headers."""
        self.data = data
        self.name = name
        if len(data) < 52 or data[:4] != b"\x7fELF":
            raise refuse(f"{name}: not an ELF file")
        if data[4] not in (1, 2) or data[5] != 1:
            raise refuse(f"{name}: not a little-endian ELF file", "Xen runs x86 kernels here")
        self.bits = 64 if data[4] == 2 else 32
        if self.bits == 64 and len(data) < 64:
            raise self._truncated("its header")
        layout = "<HHIQQQIHHHHHH" if self.bits == 64 else "<HHIIIIIHHHHHH"
        (
            self.type,
            self.machine,
            _version,
            self.entry,
            self._phoff,
            self._shoff,
            _flags,
            _ehsize,
            self._phentsize,
            self._phnum,
            self._shentsize,
            self._shnum,
            self._shstrndx,
        ) = struct.unpack_from(layout, data, 16)

    @property
    def machine_name(self) -> str:
        """What the file is for, in words."""
        if self.machine == EM_386:
            return "32-bit x86"
        if self.machine == EM_X86_64:
            return "x86-64"
        return _MACHINES.get(self.machine, f"machine {self.machine}")

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """All program headers; those of type PT_LOAD and PT_NOTE lie wholly inside the file."""
        layout = struct.Struct("<IIQQQQQQ" if self.bits == 64 else "<IIIIIIII")
        if self._phnum and self._phentsize < layout.size:
            raise refuse(f"{self.name}: its program headers have an impossible size")
        if self._phnum > _MAX_HEADERS:
            raise refuse(f"{self.name}: more than {_MAX_HEADERS} program headers")
        if self._phoff + self._phnum * self._phentsize > len(self.data):
            raise self._truncated("the program headers")
        found = []
        for i in range(self._phnum):
            fields = layout.unpack_from(self.data, self._phoff + i * self._phentsize)
            if self.bits == 64:
                kind, flags, offset, vaddr, paddr, file_bytes, memory_bytes, align = fields
            else:
                kind, offset, vaddr, paddr, file_bytes, memory_bytes, flags, align = fields
            if kind in (PT_LOAD, PT_NOTE) and offset + file_bytes > len(self.data):
                raise self._truncated(f"program header {i}'s {file_bytes} bytes")
            if kind == PT_LOAD and file_bytes > memory_bytes:
                raise refuse(f"{self.name}: program header {i} has more data than memory")
            found.append(
                Segment(kind, flags, offset, vaddr, paddr, file_bytes, memory_bytes, align)
            )
        return tuple(found)

    @cached_property
    def sections(self) -> tuple[Section, ...]:
        """Section headers whose content lies inside the file; none if the table is damaged.

        A kernel is usable without them, so nothing here is an error.
        """
        layout = struct.Struct("<IIQQQQIIQQ" if self.bits == 64 else "<IIIIIIIIII")
        end = self._shoff + self._shnum * self._shentsize
        if not self._shoff or self._shentsize < layout.size or end > len(self.data):
            return ()
        found = []
        for i in range(min(self._shnum, _MAX_HEADERS)):
            name, kind, _flags, addr, offset, size, link, _info, _align, entry = layout.unpack_from(
                self.data, self._shoff + i * self._shentsize
            )
            inside = kind == SHT_NOBITS or offset + size <= len(self.data)
            found.append(Section(name, kind, addr, offset, size if inside else 0, link, entry))
        return tuple(found)

    def section(self, name: bytes) -> Section | None:
        """The first section of this name."""
        if not 0 < self._shstrndx < len(self.sections):
            return None
        names = self.sections[self._shstrndx]
        for section in self.sections:
            at = names.offset + section.name_offset
            if self.data[at : at + len(name) + 1] == name + b"\0":
                return section
        return None

    def content(self, section: Section) -> bytes:
        """The section's bytes in the file."""
        if section.type == SHT_NOBITS:
            return b""
        return self.data[section.offset : section.offset + section.size_bytes]

    def notes(self) -> Iterator[Note]:
        """Notes of the PT_NOTE segments, else those of the SHT_NOTE sections, as Xen does it.

        Stops at the first damaged note of an area: kernels link other things behind theirs.
        """
        areas = [(s.offset, s.file_bytes) for s in self.segments if s.type == PT_NOTE and s.offset]
        found = list(self._notes_in(areas))
        if not any(note.name == b"Xen" for note in found):
            areas = [(s.offset, s.size_bytes) for s in self.sections if s.type == SHT_NOTE]
            found += self._notes_in(areas)
        yield from found

    def _notes_in(self, areas: list[tuple[int, int]]) -> Iterator[Note]:
        count = 0
        for offset, size in areas:
            at, end = offset, offset + size
            while end - at >= 12 and count < _MAX_NOTES:
                name_bytes, desc_bytes, kind = struct.unpack_from("<III", self.data, at)
                desc_at = at + 12 + _aligned(name_bytes)
                if desc_at + desc_bytes > end:
                    break
                name = self.data[at + 12 : at + 12 + name_bytes].rstrip(b"\0")
                yield Note(name, kind, self.data[desc_at : desc_at + desc_bytes])
                at = desc_at + _aligned(desc_bytes)
                count += 1

    def _truncated(self, what: str) -> Exception:
        return refuse(
            f"{self.name}: the file is truncated: {what} would lie behind its end "
            f"({len(self.data)} bytes)",
            "copy the kernel again, and compare its size with the original's",
        )


def _aligned(n: int) -> int:
    return (n + 3) & ~3
