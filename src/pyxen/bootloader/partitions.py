"""Where file systems may be on a disk: partitions of an MBR or a GPT, or all of it.

Sources: UEFI specification 2.10, chapter 5 (GPT); the MBR and its chain of extended partitions as
Linux's block/partitions/msdos.c reads it.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pyxen.bootloader.blocks import SECTOR_BYTES, Blocks, Window

MBR_SIGNATURE = b"\x55\xaa"
MBR_TABLE = 446
MBR_ACTIVE = 0x80
EXTENDED_TYPES = (0x05, 0x0F, 0x85)
PROTECTIVE_TYPE = 0xEE
LINUX_LVM_TYPE = 0x8E
LOGICAL_MAX = 60

GPT_SIGNATURE = b"EFI PART"
GPT_ENTRIES_MAX = 256
GPT_ENTRY_BYTES = (128, 4096)
GPT_LEGACY_BOOT = 1 << 2

ISO_MAGIC_AT = 0x8001


@dataclass(frozen=True)
class Partition:
    """One place for a file system. `number` counts from 1 as GRUB does; 0 is the whole disk."""

    number: int
    table: str
    blocks: Blocks
    active: bool = False

    @property
    def name(self) -> str:
        """What people call it."""
        return f"partition {self.number} ({self.table})" if self.number else "the whole disk"


def partitions(disk: Blocks) -> list[Partition]:
    """All partitions in the order in which to look at them: active ones first, as pygrub does.

    The whole disk comes first if it is an ISO image that has a table too, and is the only one if
    there is no table.
    """
    whole = Partition(0, "", disk)
    sector = disk.read_at(0, SECTOR_BYTES)
    if sector[510:512] != MBR_SIGNATURE:
        return [whole]
    found = _gpt(disk) or _mbr(disk, sector)
    found.sort(key=lambda partition: not partition.active)
    if disk.read_at(ISO_MAGIC_AT, 5) == b"CD001" or not found:
        # A boot sector has the signature of a table, too.
        return [whole, *found]
    return found


def _mbr(disk: Blocks, sector: bytes) -> list[Partition]:
    found = []
    for index in range(4):
        flags, kind, start, size = _mbr_entry(sector, index)
        if not start or not size or flags not in (0, MBR_ACTIVE):
            continue
        if kind in EXTENDED_TYPES:
            found += _logical(disk, start)
        elif kind != PROTECTIVE_TYPE:
            found.append(_partition(disk, index + 1, start, size, "msdos", flags == MBR_ACTIVE))
    return [partition for partition in found if partition.blocks.size]


def _logical(disk: Blocks, base: int) -> list[Partition]:
    """The chain of extended boot records; its links are relative to the first one's place."""
    found: list[Partition] = []
    seen = set()
    at = base
    while at not in seen and len(found) < LOGICAL_MAX:
        seen.add(at)
        sector = disk.read_at(at * SECTOR_BYTES, SECTOR_BYTES)
        if sector[510:512] != MBR_SIGNATURE:
            break
        _, kind, start, size = _mbr_entry(sector, 0)
        if kind and start and size:
            found.append(_partition(disk, 5 + len(found), at + start, size, "msdos", False))
        _, kind, link, _ = _mbr_entry(sector, 1)
        if kind not in EXTENDED_TYPES or not link:
            break
        at = base + link
    return found


def _mbr_entry(sector: bytes, index: int) -> tuple[int, int, int, int]:
    """(flags, type, first sector, sectors)."""
    at = MBR_TABLE + 16 * index
    start, size = struct.unpack_from("<II", sector, at + 8)
    return sector[at], sector[at + 4], start, size


def _gpt(disk: Blocks) -> list[Partition]:
    """The GPT's partitions, for sectors of 512 and 4096 bytes; the copy at the end if need be."""
    for sector_bytes in (512, 4096):
        for at in (sector_bytes, disk.size - sector_bytes):
            header = disk.read_at(at, 92) if at > 0 else b""
            if len(header) == 92 and header[:8] == GPT_SIGNATURE:
                found = _gpt_entries(disk, header, sector_bytes)
                if found:
                    return found
    return []


def _gpt_entries(disk: Blocks, header: bytes, sector_bytes: int) -> list[Partition]:
    table, count, entry_bytes = struct.unpack_from("<QII", header, 72)
    if not GPT_ENTRY_BYTES[0] <= entry_bytes <= GPT_ENTRY_BYTES[1]:
        return []
    found = []
    for index in range(min(count, GPT_ENTRIES_MAX)):
        entry = disk.read_at(table * sector_bytes + index * entry_bytes, 128)
        if len(entry) < 128:
            break
        first, last, attributes = struct.unpack_from("<QQQ", entry, 32)
        if not any(entry[:16]) or last < first:
            continue
        active = bool(attributes & GPT_LEGACY_BOOT)
        blocks = Window(disk, first * sector_bytes, (last - first + 1) * sector_bytes)
        if blocks.size:
            found.append(Partition(index + 1, "gpt", blocks, active))
    return found


def _partition(
    disk: Blocks, number: int, start: int, size: int, table: str, active: bool
) -> Partition:
    blocks = Window(disk, start * SECTOR_BYTES, size * SECTOR_BYTES)
    return Partition(number, table, blocks, active)
