"""Compressed payloads: every format, truncated, damaged, and larger than they may be."""

import hashlib
import struct
from pathlib import Path

import pytest
from kernel_maker import compress, lzop_stored

from pyxen.builder import payload
from pyxen.builder.lzo import LzoError, decompress_block, decompress_lzop
from pyxen.errors import UserError

FORMATS = [c.name for c in payload.COMPRESSIONS]
TEXT = b"".join(b"line %d of the text\n" % n for n in range(20_000))
GOLDEN = Path(__file__).parent / "golden"
GOLDEN_SHA256 = "8276910ee153364e32ccc08a4865cc972f0f40f734d0a3e209f02245b1052560"
GOLDEN_BYTES = 35_243


def unpack(name: str, data: bytes, limit: int = 1 << 24) -> bytes:
    found = payload.recognise(data)
    assert found is not None
    assert found.name == name
    return payload.decompress(data, found, "kernel", limit)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_comes_back(name: str) -> None:
    assert unpack(name, compress(name, TEXT)) == TEXT


@pytest.mark.parametrize("name", FORMATS)
def test_the_size_that_a_bzimage_keeps_behind_is_ignored(name: str) -> None:
    assert unpack(name, compress(name, TEXT) + struct.pack("<I", len(TEXT))) == TEXT


@pytest.mark.parametrize("name", FORMATS)
def test_truncated_data_is_refused(name: str) -> None:
    packed = compress(name, TEXT)
    for length in (len(packed) // 2, len(packed) - 9, 40):
        with pytest.raises(UserError, match=f"kernel: the {name} data is damaged") as caught:
            unpack(name, packed[:length])
        assert caught.value.exit_code == 3


@pytest.mark.parametrize("name", FORMATS)
def test_output_is_bounded(name: str) -> None:
    zeros = bytes(8 << 20)
    assert unpack(name, compress(name, zeros), 8 << 20) == zeros
    with pytest.raises(UserError, match=r"more than (1 MiB|is allowed)"):
        unpack(name, compress(name, zeros), 1 << 20)


@pytest.mark.parametrize("name", [n for n in FORMATS if n not in ("lzo", "lz4")])
def test_damaged_data_is_refused(name: str) -> None:
    packed = bytearray(compress(name, TEXT))
    middle = len(packed) // 2
    packed[middle : middle + 64] = bytes(64)
    with pytest.raises(UserError, match="damaged"):
        unpack(name, bytes(packed))


def test_unknown_data_is_not_recognised() -> None:
    for data in (b"", b"\x7fELF", b"\0" * 64, b"\x1f"):
        assert payload.recognise(data) is None


def test_lz4_of_several_blocks_and_streams() -> None:
    large = bytes(range(256)) * (70 << 10)  # three blocks
    packed = compress("lz4", large)
    assert unpack("lz4", packed, 1 << 26) == large
    assert unpack("lz4", packed + compress("lz4", b"more"), 1 << 26) == large + b"more"


@pytest.mark.parametrize("level", [1, 9])
def test_lzop_files_of_the_real_tool(level: int) -> None:
    out = decompress_lzop((GOLDEN / f"level{level}.lzo").read_bytes(), GOLDEN_BYTES)
    assert len(out) == GOLDEN_BYTES
    assert hashlib.sha256(out).hexdigest() == GOLDEN_SHA256


def test_lzop_refuses_every_truncation_and_never_exceeds_its_limit() -> None:
    data = (GOLDEN / "level9.lzo").read_bytes()
    for length in range(len(data)):
        with pytest.raises(LzoError):
            decompress_lzop(data[:length], GOLDEN_BYTES)
    with pytest.raises(LzoError, match="allowed"):
        decompress_lzop(data, GOLDEN_BYTES - 1)


def test_lzop_with_flipped_bits_does_nothing_worse_than_fail() -> None:
    data = (GOLDEN / "level9.lzo").read_bytes()
    for at in range(len(data)):
        broken = data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :]
        try:
            out = decompress_lzop(broken, GOLDEN_BYTES)
        except LzoError:
            continue
        assert len(out) <= GOLDEN_BYTES


def test_lzo_block_with_a_match_before_its_start() -> None:
    with pytest.raises(LzoError, match="before the start"):
        decompress_block(b"\x12A\x40\x10" + b"\x11\0\0", 4)


def test_lzop_header_with_filter_and_extra_field() -> None:
    plain = lzop_stored(b"content")
    at = plain.index(struct.pack(">I", 1), 16)
    extra = struct.pack(">I", 1 | 0x40 | 0x800) + bytes(4) + plain[at + 4 : at + 21]
    extra += struct.pack(">I", 3) + b"abc" + bytes(4) + plain[at + 21 :]
    assert decompress_lzop(plain[:at] + extra, 100) == b"content"
