"""btrfs, read only, on one device: enough to walk directories and read files.

There is no library for it on PyPI. Paths begin in the top-level subvolume, as GRUB's do; subvolumes
are directories of it. Not read: data striped over several disks, and LZO compression.

Source: linux/btrfs_tree.h (structures and key types); the on-disk format page of btrfs's manual.
"""

from __future__ import annotations

import struct
import zlib
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from pyxen.bootloader.blocks import Blocks
from pyxen.bootloader.failure import ImageError

SUPER_AT = 0x10000
SYS_CHUNKS_AT = 811
SYS_CHUNKS_BYTES_MAX = 2048
HEADER_BYTES = 101
NODE_BYTES = (4096, 65536)
LEVEL_MAX = 7
NODES_MAX = 50_000
CACHED_NODES = 128
CHUNKS_MAX = 65536
EXTENT_BYTES_MAX = 128 << 20
COMPRESSED_BYTES_MAX = 128 << 10
LINK_BYTES_MAX = 4096

ROOT_TREE_DIR, FS_TREE, FIRST_FREE, FIRST_CHUNK_TREE = 6, 5, 256, 256
INODE_ITEM, DIR_ITEM, DIR_INDEX, EXTENT_DATA, ROOT_ITEM, CHUNK_ITEM = 1, 84, 96, 108, 132, 228
SYSTEM_SUBVOLUMES = ("@rootfs", "@", "root")
"""Where Debian, Ubuntu and SUSE, and Fedora put the system."""
STRIPED = 8 | 64 | 128 | 256
"""Block groups whose data is spread: RAID0, RAID10, RAID5, RAID6."""
INLINE, REGULAR = 0, 1
ZLIB, LZO, ZSTD = 1, 2, 3
U64_MAX = (1 << 64) - 1

_KEY = struct.Struct("<QBQ")
_ITEM = struct.Struct("<QBQII")
_POINTER = struct.Struct("<QBQQQ")
_CHUNK = struct.Struct("<QQQQIIIHH")
_STRIPE = struct.Struct("<QQ16s")
_DIR_ENTRY = struct.Struct("<QBQQHHB")
_EXTENT = struct.Struct("<QQBBHB")
_EXTENT_ON_DISK = struct.Struct("<QQQQ")

Key = tuple[int, int, int]


@dataclass(frozen=True)
class _Chunk:
    logical: int
    length: int
    physical: int
    striped: bool


class Btrfs:
    """One file system. ImageError for anything that is not as it should be."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._cache: OrderedDict[int, bytes] = OrderedDict()
        self._chunks: list[_Chunk] = []
        block = blocks.read_at(SUPER_AT, 4096)
        if len(block) < 4096:
            raise ImageError("the btrfs superblock is cut off")
        self.fsid = block[32:48]
        self.label = block[299:555].partition(b"\0")[0].decode(errors="replace")
        root, chunk_root = struct.unpack_from("<QQ", block, 80)
        self._node_bytes, array_bytes = struct.unpack_from("<I", block, 148)[0], block[160:164]
        if not NODE_BYTES[0] <= self._node_bytes <= NODE_BYTES[1]:
            raise ImageError(f"btrfs nodes of {self._node_bytes} bytes")
        root_level, chunk_level = block[198], block[199]
        self._devid = struct.unpack_from("<Q", block, 201)[0]
        self._bootstrap_chunks(block, int.from_bytes(array_bytes, "little"))
        self._read_chunks(chunk_root, chunk_level)
        self._root = (root, root_level)
        self._trees: dict[int, tuple[int, int]] = {}

    def root(self) -> BtrfsNode:
        """The top-level subvolume's root directory."""
        return BtrfsNode(self, FS_TREE, FIRST_FREE, "directory")

    def system_roots(self) -> list[BtrfsNode]:
        """Root directories of the default subvolume, and of those with an installer's names."""
        top = self.root()
        named = [top.child(name) for name in SYSTEM_SUBVOLUMES]
        return [self._default_root(), *(node for node in named if node is not None)]

    def _default_root(self) -> BtrfsNode:
        low, high = (ROOT_TREE_DIR, DIR_ITEM, 0), (ROOT_TREE_DIR, DIR_ITEM, U64_MAX)
        for _, data in self.items(self._root, low, high):
            for name, (tree, kind, _), _ in _entries(data):
                if name == "default" and kind == ROOT_ITEM:
                    return BtrfsNode(self, tree, FIRST_FREE, "directory")
        return self.root()

    def tree(self, number: int) -> tuple[int, int]:
        """Where a tree's root node is, and its level."""
        if number not in self._trees:
            low, high = (number, ROOT_ITEM, 0), (number, ROOT_ITEM, U64_MAX)
            for _, data in self.items(self._root, low, high):
                if len(data) >= 239:
                    self._trees[number] = (struct.unpack_from("<Q", data, 176)[0], data[238])
        if number not in self._trees:
            raise ImageError(f"btrfs: there is no tree {number}")
        return self._trees[number]

    def items(self, root: tuple[int, int], low: Key, high: Key) -> Iterator[tuple[Key, bytes]]:
        """All items of a tree with low <= key <= high."""
        return self._items(root[0], root[1], low, high, [NODES_MAX])

    def read_logical(self, logical: int, length: int) -> bytes:
        """Bytes at an address of the file system."""
        parts = []
        while length:
            chunk = self._chunk_at(logical)
            inside = logical - chunk.logical
            size = min(length, chunk.length - inside)
            data = self._blocks.read_at(chunk.physical + inside, size)
            if len(data) != size:
                raise ImageError(f"btrfs: the disk ends before address {logical:#x}")
            parts.append(data)
            logical += size
            length -= size
        return b"".join(parts)

    def _items(
        self, at: int, level: int, low: Key, high: Key, budget: list[int]
    ) -> Iterator[tuple[Key, bytes]]:
        node = self._node(at, level, budget)
        count = struct.unpack_from("<I", node, 96)[0]
        if level:
            yield from self._below(node, count, level, low, high, budget)
            return
        for index in range(min(count, (self._node_bytes - HEADER_BYTES) // _ITEM.size)):
            *key, offset, size = _ITEM.unpack_from(node, HEADER_BYTES + index * _ITEM.size)
            found: Key = (key[0], key[1], key[2])
            if low <= found <= high:
                yield found, node[HEADER_BYTES + offset : HEADER_BYTES + offset + size]

    def _below(
        self, node: bytes, count: int, level: int, low: Key, high: Key, budget: list[int]
    ) -> Iterator[tuple[Key, bytes]]:
        count = min(count, (self._node_bytes - HEADER_BYTES) // _POINTER.size)
        pointers = [
            _POINTER.unpack_from(node, HEADER_BYTES + index * _POINTER.size)
            for index in range(count)
        ]
        keys = [pointer[:3] for pointer in pointers]
        for pointer in pointers[max(0, bisect_right(keys, low) - 1) :]:
            if pointer[:3] > high:
                break
            yield from self._items(pointer[3], level - 1, low, high, budget)

    def _node(self, at: int, level: int, budget: list[int]) -> bytes:
        budget[0] -= 1
        if budget[0] < 0 or level > LEVEL_MAX:
            raise ImageError("btrfs: a tree is too large")
        node = self._cache.get(at)
        if node is None:
            node = self.read_logical(at, self._node_bytes)
            self._cache[at] = node
            if len(self._cache) > CACHED_NODES:
                self._cache.popitem(last=False)
        if struct.unpack_from("<Q", node, 48)[0] != at or node[100] != level:
            raise ImageError(f"btrfs: there is no node of level {level} at {at:#x}")
        return node

    def _bootstrap_chunks(self, block: bytes, size: int) -> None:
        at, end = SYS_CHUNKS_AT, SYS_CHUNKS_AT + min(size, SYS_CHUNKS_BYTES_MAX)
        while at + _KEY.size + _CHUNK.size <= end:
            logical = _KEY.unpack_from(block, at)[2]
            at += _KEY.size
            stripes = _CHUNK.unpack_from(block, at)[7]
            used = _CHUNK.size + stripes * _STRIPE.size
            self._add_chunk(logical, block[at : min(at + used, end)])
            at += used
        self._chunks.sort(key=lambda chunk: chunk.logical)

    def _read_chunks(self, root: int, level: int) -> None:
        low, high = (FIRST_CHUNK_TREE, CHUNK_ITEM, 0), (FIRST_CHUNK_TREE, CHUNK_ITEM, U64_MAX)
        for key, data in list(self.items((root, level), low, high)):
            if len(self._chunks) > CHUNKS_MAX:
                raise ImageError("btrfs: too many chunks")
            self._add_chunk(key[2], data)
        self._chunks.sort(key=lambda chunk: chunk.logical)

    def _add_chunk(self, logical: int, data: bytes) -> None:
        """Enter a chunk by its stripe on this device; one of other devices only is left out."""
        if len(data) < _CHUNK.size:
            raise ImageError("btrfs: a chunk item is cut off")
        length, _, _, kind, _, _, _, stripes, _ = _CHUNK.unpack_from(data)
        for index in range(min(stripes, (len(data) - _CHUNK.size) // _STRIPE.size)):
            devid, physical, _ = _STRIPE.unpack_from(data, _CHUNK.size + index * _STRIPE.size)
            if devid == self._devid:
                striped = bool(kind & STRIPED) and stripes > 1
                self._chunks.append(_Chunk(logical, length, physical, striped))
                return

    def _chunk_at(self, logical: int) -> _Chunk:
        index = bisect_right(self._chunks, logical, key=lambda chunk: chunk.logical) - 1
        chunk = self._chunks[index] if index >= 0 else None
        if chunk is None or logical >= chunk.logical + chunk.length:
            raise ImageError(f"btrfs: address {logical:#x} is not on this disk")
        if chunk.striped:
            raise ImageError("btrfs: the file system is striped over several disks")
        return chunk


class BtrfsNode:
    """A file, directory or link; see filesystems.Node."""

    def __init__(self, of: Btrfs, tree: int, inode: int, kind: str) -> None:
        self._of = of
        self._tree = tree
        self._inode = inode
        self.kind = kind
        self._extents: list[tuple[int, bytes]] | None = None
        self.size = self._inode_size() if kind in ("file", "link") else 0

    def _items(self, kind: int) -> Iterator[tuple[Key, bytes]]:
        low, high = (self._inode, kind, 0), (self._inode, kind, U64_MAX)
        return self._of.items(self._of.tree(self._tree), low, high)

    def _inode_size(self) -> int:
        for _, data in self._items(INODE_ITEM):
            if len(data) >= 24:
                return int(struct.unpack_from("<Q", data, 16)[0])
        raise ImageError(f"btrfs: inode {self._inode} is missing")

    def read(self, offset: int, length: int) -> bytes:
        """Content; what no extent holds is zeros."""
        length = min(length, self.size - offset)
        result = bytearray(length)
        if self._extents is None:
            self._extents = [(key[2], data) for key, data in self._items(EXTENT_DATA)]
        for start, data in self._extents:
            if start >= offset + length:
                break
            begin = max(start, offset)
            part = self._extent(data, begin - start, offset + length - begin)
            result[begin - offset : begin - offset + len(part)] = part
        return bytes(result)

    def _extent(self, data: bytes, skip: int, wanted: int) -> bytes:
        """At most `wanted` bytes of one extent, from `skip` on."""
        if len(data) < _EXTENT.size:
            raise ImageError("btrfs: an extent item is cut off")
        _, ram_bytes, compression, encryption, _, kind = _EXTENT.unpack_from(data)
        if encryption:
            raise ImageError("btrfs: the file is encrypted")
        if kind == INLINE:
            content = _decompress(compression, data[_EXTENT.size :], ram_bytes)
            return content[skip : skip + wanted]
        if len(data) < _EXTENT.size + _EXTENT_ON_DISK.size:
            raise ImageError("btrfs: an extent item is cut off")
        where, size, offset, count = _EXTENT_ON_DISK.unpack_from(data, _EXTENT.size)
        wanted = min(wanted, count - skip)
        if wanted <= 0 or not where or kind != REGULAR:
            return b""
        if not compression:
            return self._of.read_logical(where + offset + skip, wanted)
        if size > EXTENT_BYTES_MAX:
            raise ImageError("btrfs: a compressed extent is too large")
        content = _decompress(compression, self._of.read_logical(where, size), ram_bytes)
        return content[offset + skip : offset + skip + wanted]

    def target(self) -> str:
        """Where a link points."""
        return self.read(0, min(self.size, LINK_BYTES_MAX)).decode(errors="replace")

    def child(self, name: str) -> BtrfsNode | None:
        """What a directory holds under a name."""
        for _, data in self._items(DIR_INDEX):
            for found, location, kind in _entries(data):
                if found == name:
                    return self._at(location, kind)
        return None

    def names(self) -> Iterable[str]:
        """What a directory holds."""
        for _, data in self._items(DIR_INDEX):
            for name, _, _ in _entries(data):
                yield name

    def _at(self, location: Key, kind: int) -> BtrfsNode:
        kinds = {1: "file", 2: "directory", 7: "link"}
        if location[1] == ROOT_ITEM:
            return BtrfsNode(self._of, location[0], FIRST_FREE, "directory")
        return BtrfsNode(self._of, self._tree, location[0], kinds.get(kind, "other"))


def _entries(data: bytes) -> Iterator[tuple[str, Key, int]]:
    """(name, location, type) of the entries in a directory item."""
    at = 0
    while at + _DIR_ENTRY.size <= len(data):
        *location, _, data_bytes, name_bytes, kind = _DIR_ENTRY.unpack_from(data, at)
        at += _DIR_ENTRY.size
        name = data[at : at + name_bytes].decode(errors="replace")
        yield name, (location[0], location[1], location[2]), kind
        at += name_bytes + data_bytes


def _decompress(compression: int, data: bytes, size: int) -> bytes:
    if not compression:
        return data
    if size > COMPRESSED_BYTES_MAX:
        raise ImageError("btrfs: a compressed extent is too large")
    if compression == ZLIB:
        try:
            return zlib.decompressobj().decompress(data, size)
        except zlib.error as error:
            raise ImageError(f"btrfs: compressed data is damaged: {error}") from error
    if compression == ZSTD:
        import zstandard

        try:
            reader = zstandard.ZstdDecompressor(max_window_size=8 << 20).stream_reader(data)
            return bytes(reader.read(size))
        except zstandard.ZstdError as error:
            raise ImageError(f"btrfs: compressed data is damaged: {error}") from error
    name = "LZO" if compression == LZO else f"kind {compression}"
    raise ImageError(f"btrfs: the file is compressed with {name}, which is not read")
