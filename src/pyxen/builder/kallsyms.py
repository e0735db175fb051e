"""The symbol tables that Linux carries inside of itself, found in a stripped kernel image.

Distributions strip their kernels, but CONFIG_KALLSYMS leaves compressed tables for the kernel's own
back-traces. Nothing points at them from outside, so they are recognised by their content:

    Linux before 6.4        Linux since 6.4
    offsets                 num_syms
    relative_base           names         length (1 or 2 bytes), then bytes that stand for tokens
    num_syms                markers       u32: where each 256th name begins
    names                   token_table   256 strings, each with a NUL
    markers                 token_index   256 u16 into token_table
    (seqs_of_names)         offsets       s32 a symbol, in the order of addresses
    token_table             relative_base u64
    token_index             seqs_of_names

Each begins at a multiple of 8. seqs_of_names came with 6.2 and went into 6.1's stable releases.

Source: scripts/kallsyms.c and kernel/kallsyms.c of Linux.
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterator, Sequence
from itertools import chain, pairwise
from typing import Final

from pyxen.types import U64

_DIGITS: Final = b"".join(b"%d\0" % digit for digit in range(10))
_MIN_SYMBOLS: Final = 4 * 256  # fewer would match by accident
_MAX_SYMBOLS: Final = 1 << 21
_TABLES_BYTES: Final = 32 << 20
_LONGEST_NAME: Final = 512
_KERNEL_START: Final = 0xFFFF_FFFF_8000_0000
_GROUP: Final = 256
_BASE_TAIL: Final = b"\xff\xff\xff\xff"


class Kallsyms:
    """Tables found in an image; names are decoded when they are asked for.

    addresses: sorted; index i is the i-th symbol.
    """

    def __init__(
        self,
        image: bytes,
        names_at: int,
        markers: Sequence[int],
        tokens: list[bytes],
        addresses: Sequence[int],
    ) -> None:
        self._image = image
        self._names_at = names_at
        self._markers = markers
        self._tokens = tokens
        self.addresses = addresses

    def name(self, index: int) -> tuple[str, str]:
        """(the letter that tells a symbol's kind, as nm prints it; the name)."""
        at = self._names_at + self._markers[index // _GROUP]
        for _ in range(index % _GROUP):
            at = _skip(self._image, at)
        start, length = _length(self._image, at)
        coded = self._image[start : start + length]
        text = b"".join(self._tokens[code] for code in coded).decode("latin-1")
        return text[:1], text[1:]


def find_kallsyms(image: bytes) -> Kallsyms | None:
    """The tables in an uncompressed kernel image, or None if there are none that make sense."""
    at = image.find(_DIGITS)
    while at >= 0:
        try:
            found = _tables_around(image, at)
        except (struct.error, IndexError, ValueError):
            found = None
        if found is not None:
            return found
        at = image.find(_DIGITS, at + 1)
    return None


def _tables_around(image: bytes, digits_at: int) -> Kallsyms | None:
    """Check whether `digits_at` is where a token table has the tokens of the ten digits."""
    table = _token_table(image, digits_at)
    if table is None:
        return None
    tokens_at, tokens, index_end = table
    after = _aligned(index_end)
    for count_at, count in chain(_counts(image, tokens_at), _counts_behind_base(image, tokens_at)):
        marks = _walk_names(image, count_at + 8, count, tokens_at)
        if marks is None:
            continue
        size = _aligned(count * 4)
        for offsets_at, base_at in ((after, after + size), (count_at - 8 - size, count_at - 8)):
            addresses = _addresses(image, offsets_at, base_at, count)
            if addresses is not None:
                return Kallsyms(image, count_at + 8, marks, tokens, addresses)
    return None


def _token_table(image: bytes, digits_at: int) -> tuple[int, list[bytes], int] | None:
    """(start, the 256 tokens, end of token_index)."""
    at = digits_at
    for _ in range(ord("0"), 256):
        at = image.index(b"\0", at, at + _LONGEST_NAME) + 1
    index_at = _aligned(at)
    index = struct.unpack_from("<256H", image, index_at)
    start = digits_at - index[ord("0")]
    if index[0] != 0 or start < 0:
        return None
    tokens = image[start:at].split(b"\0")[:256]
    expected = 0
    for offset, token in zip(index, tokens, strict=True):
        if offset != expected:
            return None
        expected += len(token) + 1
    return start, tokens, index_at + 512


def _counts_behind_base(image: bytes, tokens_at: int) -> Iterator[tuple[int, int]]:
    """Before Linux 6.4: (where num_syms may be, its value), behind what may be relative_base."""
    lowest = max(0, tokens_at - _TABLES_BYTES)
    at = image.rfind(_BASE_TAIL, lowest, tokens_at)
    while at >= 0:
        if at % 8 == 4 and image[at - 1] >= 0x80:
            (count,) = struct.unpack_from("<Q", image, at + 4)
            if _MIN_SYMBOLS <= count <= _MAX_SYMBOLS:
                yield at + 4, count
        at = image.rfind(_BASE_TAIL, lowest, at + len(_BASE_TAIL) - 1)


def _counts(image: bytes, tokens_at: int) -> Iterator[tuple[int, int]]:
    """Since Linux 6.4: the same, found through the markers right before token_table.

    They are rising numbers, the first is 0, and there may be padding behind the last.
    """
    at = tokens_at - 4
    if image[at:tokens_at] == bytes(4):
        at -= 4
    (last,) = struct.unpack_from("<I", image, at)
    value, groups = last, 1
    while value:
        at -= 4
        (before,) = struct.unpack_from("<I", image, at)
        if before >= value or groups > _MAX_SYMBOLS // _GROUP:
            return
        value = before
        groups += 1
    names_end = at
    highest = (names_end - last - 8) & ~7
    for count_at in range(highest, max(0, highest - _GROUP * _LONGEST_NAME), -8):
        (count,) = struct.unpack_from("<Q", image, count_at)
        if (groups - 1) * _GROUP < count <= groups * _GROUP:
            yield count_at, count


def _walk_names(image: bytes, start: int, count: int, end: int) -> array[int] | None:
    """The markers of `count` names, if they are the ones that stand behind the names."""
    marks = array("I")
    at = start
    for i in range(count):
        if i % _GROUP == 0:
            marks.append(at - start)
        at = _skip(image, at)
        if at > end:
            return None
    stored = _aligned(at)
    return marks if image[stored : stored + len(marks) * 4] == marks.tobytes() else None


def _length(image: bytes, at: int) -> tuple[int, int]:
    """(where the name's bytes begin, how many): lengths above 127 take two bytes."""
    length = image[at]
    if length & 0x80:
        return at + 2, length & 0x7F | image[at + 1] << 7
    return at + 1, length


def _skip(image: bytes, at: int) -> int:
    start, length = _length(image, at)
    return start + length


def _addresses(image: bytes, offsets_at: int, base_at: int, count: int) -> array[int] | None:
    """Every symbol's address, if they are sorted as they have to be.

    With CONFIG_KALLSYMS_ABSOLUTE_PERCPU an offset below 0 counts down from relative_base - 1 and
    others are absolute; without, all count up from relative_base.
    """
    if offsets_at < 0 or base_at + 8 > len(image):
        return None
    (base,) = struct.unpack_from("<Q", image, base_at)
    if base < _KERNEL_START:
        return None
    offsets = struct.unpack_from(f"<{count}i", image, offsets_at)
    if min(offsets) < 0:
        found = array("Q", (n if n >= 0 else (base - 1 - n) & U64 for n in offsets))
    else:
        found = array("Q", ((base + n) & U64 for n in offsets))
    in_order = all(a <= b for a, b in pairwise(found))
    return found if in_order else None


def _aligned(at: int) -> int:
    return (at + 7) & ~7
