"""Compressed data as found in kernels: recognised by its first bytes, decompressed with a bound.

Kernels come from anywhere, guests included, so no decompressor may produce more than it was
allowed to, whatever its input claims.

Source: Documentation/arch/x86/boot.rst (payload_offset: the formats a bzImage may carry), and each
format's own description.
"""

from __future__ import annotations

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyxen.builder.failure import refuse
from pyxen.builder.lzo import LzoError, decompress_lzop

MAX_KERNEL_BYTES: Final = 512 << 20
"""The largest kernel that is accepted, after decompression."""

_LZMA_MEMORY_BYTES: Final = 256 << 20
_ZSTD_WINDOW_BYTES: Final = 128 << 20
_ZSTD_STEP_BYTES: Final = 1024  # at most 256 blocks of 128 KiB
_LZ4_BLOCK_BYTES: Final = 8 << 20
_LZ4_MAGIC: Final = b"\x02\x21\x4c\x18"


class _TooLarge(Exception):
    """The data decompresses to more than is allowed."""


class _Broken(Exception):
    """The data ends early or is not what its first bytes promised."""


def _gzip(data: memoryview, limit: int) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    out = stream.decompress(data, limit + 1)
    if len(out) <= limit and not stream.eof:
        raise _Broken("ends in the middle")
    return out


def _bzip2(data: memoryview, limit: int) -> bytes:
    stream = bz2.BZ2Decompressor()
    out = stream.decompress(data, limit + 1)
    if len(out) <= limit and not stream.eof:
        raise _Broken("ends in the middle")
    return out


def _lzma_family(format_: int) -> Callable[[memoryview, int], bytes]:
    def decompress(data: memoryview, limit: int) -> bytes:
        stream = lzma.LZMADecompressor(format_, memlimit=_LZMA_MEMORY_BYTES)
        out = stream.decompress(data, limit + 1)
        if len(out) <= limit and not stream.eof:
            raise _Broken("ends in the middle")
        return out

    return decompress


def _lz4_legacy(data: memoryview, limit: int) -> bytes:
    """Blocks of at most 8 MiB, each behind its compressed size; the end of the data ends them.

    Inside a bzImage four more bytes follow (the size of it all), too few for a block.
    """
    from lz4 import block

    # Each piece is copied and freed at once: fresh memory costs more here than decompressing.
    out = io.BytesIO()
    at = 4
    while len(data) - at > 4:
        (size,) = struct.unpack_from("<I", data, at)
        at += 4
        if bytes(data[at - 4 : at]) == _LZ4_MAGIC:  # concatenated streams
            continue
        if size == 0 or size > len(data) - at:
            raise _Broken("a block is longer than the data")
        try:
            piece = block.decompress(data[at : at + size], uncompressed_size=_LZ4_BLOCK_BYTES)
        except block.LZ4BlockError as e:
            raise _Broken(str(e)) from None
        if out.tell() + len(piece) > limit:
            raise _TooLarge
        out.write(piece)
        at += size
    return out.getvalue()


def _zstd(data: memoryview, limit: int) -> bytes:
    """One frame. It is fed in small steps, because a step's output cannot be bounded otherwise."""
    import zstandard

    stream = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW_BYTES).decompressobj()
    out = io.BytesIO()
    try:
        for at in range(0, len(data), _ZSTD_STEP_BYTES):
            piece = stream.decompress(data[at : at + _ZSTD_STEP_BYTES])
            if out.tell() + len(piece) > limit:
                raise _TooLarge
            out.write(piece)
            if stream.eof:
                return out.getvalue()
    except zstandard.ZstdError as e:
        raise _Broken(str(e)) from None
    raise _Broken("ends in the middle")


def _lzo(data: memoryview, limit: int) -> bytes:
    try:
        return decompress_lzop(bytes(data), limit)
    except LzoError as e:
        raise _Broken(str(e)) from None


@dataclass(frozen=True, slots=True)
class Compression:
    """One compression format: what its data starts with, and how to undo it."""

    name: str
    magic: bytes
    decompress: Callable[[memoryview, int], bytes]


COMPRESSIONS: Final = (
    Compression("gzip", b"\x1f\x8b", _gzip),
    Compression("bzip2", b"BZh", _bzip2),
    Compression("xz", b"\xfd7zXZ\x00", _lzma_family(lzma.FORMAT_XZ)),
    Compression("lzma", b"\x5d\x00\x00", _lzma_family(lzma.FORMAT_ALONE)),
    Compression("lzo", b"\x89LZO\x00\r\n\x1a\n", _lzo),
    Compression("lz4", _LZ4_MAGIC, _lz4_legacy),
    Compression("zstd", b"\x28\xb5\x2f\xfd", _zstd),
)


def recognise(data: bytes | memoryview) -> Compression | None:
    """The format that the data's first bytes announce, or None."""
    head = bytes(data[:16])
    for compression in COMPRESSIONS:
        if head.startswith(compression.magic):
            return compression
    return None


def decompress(
    data: bytes | memoryview,
    compression: Compression,
    name: str,
    limit_bytes: int = MAX_KERNEL_BYTES,
) -> bytes:
    """The decompressed data, never more than `limit_bytes`.

    Bytes behind the end of the compressed stream are ignored: a bzImage keeps a size there.
    Args:   name: the file, for messages.
    Raises: UserError (exit code 3) for broken, truncated or oversized data.
    """
    try:
        out = compression.decompress(memoryview(data), limit_bytes)
    except _TooLarge:
        out = None
    except (_Broken, zlib.error, OSError, EOFError, lzma.LZMAError, ValueError) as e:
        raise refuse(
            f"{name}: the {compression.name} data is damaged: {e}",
            "copy the file again, and compare its checksum with the original's",
        ) from None
    if out is None or len(out) > limit_bytes:
        raise refuse(
            f"{name}: the {compression.name} data unpacks to more than {limit_bytes >> 20} MiB",
            "this is no kernel, or one that is not meant to be loaded",
        )
    return out
