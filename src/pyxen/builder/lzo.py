"""LZO1X decompression of `lzop` streams, as kernels built with CONFIG_KERNEL_LZO carry them.

Source: Documentation/staging/lzo.rst of Linux (the byte sequences of LZO1X), and the header of
lzop files. Nothing here trusts a length: every copy is checked against the input, the block's
announced size and what was already written.
"""

from __future__ import annotations

import struct
from typing import Final

MAGIC: Final = b"\x89LZO\x00\r\n\x1a\n"

F_ADLER32_D: Final = 0x001
F_ADLER32_C: Final = 0x002
F_H_EXTRA_FIELD: Final = 0x040
F_CRC32_D: Final = 0x100
F_CRC32_C: Final = 0x200
F_H_FILTER: Final = 0x800

_MAX_BLOCK_BYTES: Final = 64 << 20
_END_DISTANCE: Final = 0  # no real match has it: the end of a block


class LzoError(ValueError):
    """The stream is damaged, or uses something that is not supported."""


def decompress_lzop(data: bytes, limit_bytes: int) -> bytes:
    """All blocks of an lzop stream; output beyond `limit_bytes` is an error. Raises LzoError."""
    try:
        return _blocks(data, *_header(data), limit_bytes)
    except (struct.error, IndexError):
        raise LzoError("ends in the middle") from None


def _header(data: bytes) -> tuple[int, int]:
    """(offset of the first block, flags)."""
    if not data.startswith(MAGIC):
        raise LzoError("no lzop header")
    version, _library, _needed, method = struct.unpack_from(">HHHB", data, 9)
    at = 16
    if method not in (1, 2, 3):
        raise LzoError(f"unknown method {method}")
    if version >= 0x0940:
        at += 1  # compression level
    (flags,) = struct.unpack_from(">I", data, at)
    at += 4
    if flags & F_H_FILTER:
        at += 4
    at += 8  # mode, low word of the time
    if version >= 0x0940:
        at += 4
    at += 1 + data[at] + 4  # file name, checksum of the header
    if flags & F_H_EXTRA_FIELD:
        (extra,) = struct.unpack_from(">I", data, at)
        at += 4 + extra + 4
    return at, flags


def _blocks(data: bytes, at: int, flags: int, limit_bytes: int) -> bytes:
    out = bytearray()
    while True:
        (full,) = struct.unpack_from(">I", data, at)
        if full == 0:
            return bytes(out)
        (packed,) = struct.unpack_from(">I", data, at + 4)
        at += 8
        at += 4 * bool(flags & F_ADLER32_D) + 4 * bool(flags & F_CRC32_D)
        if packed < full:
            at += 4 * bool(flags & F_ADLER32_C) + 4 * bool(flags & F_CRC32_C)
        if full > _MAX_BLOCK_BYTES or packed > full:
            raise LzoError("impossible block size")
        if len(out) + full > limit_bytes:
            raise LzoError("unpacks to more than is allowed")
        block = data[at : at + packed]
        if len(block) != packed:
            raise LzoError("ends in the middle")
        at += packed
        out += block if packed == full else decompress_block(block, full)


def _long_count(data: bytes, at: int, base: int) -> tuple[int, int]:
    """A count that did not fit: zero bytes stand for 255 each. (count, next offset)."""
    start = at
    while data[at] == 0:
        at += 1
    return base + 255 * (at - start) + data[at], at + 1


def decompress_block(data: bytes, size: int) -> bytes:
    """One LZO1X block whose decompressed size is known.

    What an instruction below 16 means depends on how many literals the one before it copied
    (`state`: 0 none, 1-3 that many, 4 a whole run).
    Raises: LzoError; IndexError if the data ends in the middle of an instruction.
    """
    out = bytearray()
    at = 0
    state = 0
    if data[0] > 17:
        run = data[0] - 17
        out += data[1 : 1 + run]
        at = 1 + run
        state = min(run, 4)
    while True:
        op = data[at]
        at += 1
        if op < 16 and state == 0:
            literals, at = (op + 3, at) if op else _long_count(data, at, 18)
            state = 4
        else:
            length, distance, state, at = _match(data, at, op, state)
            if distance == _END_DISTANCE:
                if len(out) != size or at != len(data):
                    raise LzoError("a block does not have its announced size")
                return bytes(out)
            _copy(out, distance, length, size)
            literals = state
        if literals:
            out += data[at : at + literals]
            at += literals
            if len(out) > size:
                raise LzoError("a block is longer than announced")
            if at > len(data):
                raise LzoError("ends in the middle")


def _match(data: bytes, at: int, op: int, state: int) -> tuple[int, int, int, int]:
    """Decode a copy from earlier output: (length, distance, literals that follow, next offset)."""
    if op >= 64:
        length = 5 + (op >> 5 & 3) if op >= 128 else 3 + (op >> 5 & 1)
        return length, (data[at] << 3) + (op >> 2 & 7) + 1, op & 3, at + 1
    if op < 16:
        length, base = (3, 2049) if state == 4 else (2, 1)
        return length, (data[at] << 2) + (op >> 2) + base, op & 3, at + 1
    mask = 31 if op >= 32 else 7
    length = (op & mask) + 2
    if length == 2:
        length, at = _long_count(data, at, mask + 2)
    low = data[at] | data[at + 1] << 8
    distance = (low >> 2) + 1
    if op < 32:
        distance += ((op & 8) << 11) + 0x3FFF
        if distance == 0x4000:
            distance = _END_DISTANCE
    return length, distance, low & 3, at + 2


def _copy(out: bytearray, distance: int, length: int, size: int) -> None:
    """Append `length` bytes from `distance` back; they may overlap what is being written."""
    start = len(out) - distance
    if start < 0:
        raise LzoError("a match before the start of the block")
    if len(out) + length > size:
        raise LzoError("a block is longer than announced")
    if distance >= length:
        out += out[start : start + length]
    else:
        pattern = out[start:]
        out += (pattern * (length // distance + 1))[:length]
