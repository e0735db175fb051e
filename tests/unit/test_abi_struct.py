"""The declaration machinery of pyxen.abi: layout, packing, and what it refuses."""

import struct
from typing import Annotated

import pytest

from pyxen.abi._struct import (
    CPath,
    XenStruct,
    array,
    char,
    ptr,
    s8,
    s32,
    u8,
    u16,
    u32,
    u64,
    union,
    xen_struct,
)


@xen_struct("inner_t", header="", size=8)
class Inner(XenStruct):
    """Trailing padding: 5 bytes of fields, aligned to 4."""

    a: u32 = 0
    b: u8 = 0


@xen_struct("outer_t", header="", size=104)
class Outer(XenStruct):
    """One field of every kind, with padding between them."""

    flag: u8 = 0
    inner: Inner = Inner()
    name: Annotated[bytes, char(5)] = b""
    words: Annotated[tuple[int, ...], array(u64, 3)] = ()
    many: Annotated[tuple[Inner, ...], array(Inner, 3)] = ()
    u: Annotated[bytes, union(Inner, u64, u16)] = b""
    in_: s8 = 0
    buffer: ptr = 0
    signed: Annotated[s32, CPath("u2.signed")] = 0


@xen_struct("packed_t", header="", size=11, max_align=1)
class Packed(XenStruct):
    """No padding at all."""

    a: u8 = 0
    b: u64 = 0
    c: u16 = 0


@xen_struct("i386_t", header="", size=12, max_align=4)
class I386(XenStruct):
    """u64 aligned to 4."""

    a: u32 = 0
    b: u64 = 0


def full_outer() -> Outer:
    return Outer(
        flag=1,
        inner=Inner(a=2, b=3),
        name=b"abc",
        words=(4, 5, 1 << 63),
        many=(Inner(a=6), Inner(a=7, b=8), Inner()),
        u=Inner(a=9, b=10).pack(),
        in_=-1,
        buffer=0xFFFF_8000_0000_0000,
        signed=-2,
    )


def test_offsets_follow_c_alignment() -> None:
    assert dict(Outer.OFFSET) == {
        "flag": 0,
        "inner": 4,
        "name": 12,
        "words": 24,
        "many": 48,
        "u": 72,
        "in_": 80,
        "buffer": 88,
        "signed": 96,
    }
    assert Outer.ALIGN == 8
    assert Inner.SIZE == 8
    assert dict(Packed.OFFSET) == {"a": 0, "b": 1, "c": 9}
    assert dict(I386.OFFSET) == {"a": 0, "b": 4}


def test_c_designators() -> None:
    paths = {f.name: f.c_path for f in Outer.FIELDS}
    assert paths["in_"] == "in"
    assert paths["signed"] == "u2.signed"
    assert paths["inner"] == "inner"


def test_pack_is_what_struct_would_write() -> None:
    expected = struct.pack(
        "<B3x IB3x 5s7x 3Q IB3xIB3xIB3x IB3x b7x Q i4x",
        *(1, 2, 3, b"abc", 4, 5, 1 << 63, 6, 0, 7, 8, 0, 0, 9, 10, -1, 0xFFFF_8000_0000_0000, -2),
    )
    assert full_outer().pack() == expected


def test_round_trip() -> None:
    outer = full_outer()
    got = Outer.unpack(outer.pack())
    assert got.inner == Inner(a=2, b=3)
    assert got.name == b"abc\0\0"
    assert got.words == (4, 5, 1 << 63)
    assert got.many == outer.many
    assert Inner.unpack(got.u) == Inner(a=9, b=10)
    assert (got.in_, got.signed) == (-1, -2)
    outer.name = b"abc\0\0"
    assert got == outer


def test_omitted_fields_are_zero() -> None:
    assert Outer().pack() == bytes(Outer.SIZE)
    assert Outer() == Outer.unpack(bytes(Outer.SIZE))


def test_nested_defaults_are_not_shared() -> None:
    first, second = Outer(), Outer()
    first.inner.a = 1
    first.many[0].a = 1
    assert second.inner.a == 0
    assert second.many[0].a == 0
    assert first.many[1].a == 0


def test_unpack_copies() -> None:
    buf = bytearray(Inner(a=1).pack())
    inner = Inner.unpack(buf)
    buf[0] = 2
    assert inner.a == 1


def test_offset_into_a_buffer() -> None:
    buf = bytearray(b"\xff" * 24)
    Inner(a=1, b=2).pack_into(memoryview(buf), 8)
    assert buf == b"\xff" * 8 + b"\1\0\0\0\2\0\0\0" + b"\xff" * 8
    assert Inner.unpack(memoryview(buf), 8) == Inner(a=1, b=2)


def test_unpack_array() -> None:
    buf = b"x" + b"".join(Inner(a=i).pack() for i in range(3))
    assert [x.a for x in Inner.unpack_array(buf, 3, offset=1)] == [0, 1, 2]
    assert Inner.unpack_array(buf, 0) == []
    with pytest.raises(struct.error):
        Inner.unpack_array(buf, 4, offset=1)


@pytest.mark.parametrize("kind", [Inner, Outer, Packed])
def test_truncated_buffers(kind: type[XenStruct]) -> None:
    whole = bytes(kind.SIZE)
    for size in range(kind.SIZE):
        with pytest.raises(struct.error):
            kind.unpack(whole[:size])
        with pytest.raises(struct.error):
            kind().pack_into(bytearray(size))
    with pytest.raises(struct.error):
        kind.unpack(whole, 1)


@pytest.mark.parametrize(
    "bad",
    [
        Outer(flag=256),
        Outer(flag=-1),
        Outer(in_=128),
        Outer(words=(1, 2)),
        Outer(words=(1, 2, 3, 4)),
        Outer(name=b"abcdef"),
        Outer(u=bytes(9)),
        Outer(many=(Inner(),)),
    ],
)
def test_values_that_do_not_fit(bad: Outer) -> None:
    with pytest.raises(struct.error):
        bad.pack()
    with pytest.raises(struct.error):
        bad.pack_into(bytearray(Outer.SIZE))


def test_unknown_field_in_the_constructor() -> None:
    with pytest.raises(TypeError):
        Inner(c=1)  # type: ignore[call-arg]


def test_unknown_attribute() -> None:
    with pytest.raises(AttributeError):
        Inner().c = 1  # type: ignore[attr-defined]


def test_equality_is_by_type_and_value() -> None:
    @xen_struct("other_t", header="", size=8)
    class Other(XenStruct):
        a: u32 = 0
        b: u8 = 0

    assert Inner(a=1) == Inner(a=1)
    assert Inner(a=1) != Inner(a=2)
    assert Inner() != Other()
    assert repr(Inner(a=1)) == "Inner(a=1, b=0)"
    with pytest.raises(TypeError):
        hash(Inner())


def test_size_mismatch_raises_when_declared() -> None:
    with pytest.raises(TypeError, match="wrong_t: fields take 8 bytes, declared are 5"):

        @xen_struct("wrong_t", header="", size=5)
        class Wrong(XenStruct):
            a: u32 = 0
            b: u8 = 0


def test_default_must_be_the_empty_value() -> None:
    with pytest.raises(TypeError, match="empty value"):

        @xen_struct("wrong_t", header="", size=4)
        class Set(XenStruct):
            a: u32 = 1

    with pytest.raises(TypeError, match="empty value"):

        @xen_struct("wrong_t", header="", size=4)
        class Missing(XenStruct):
            a: u32


def test_field_type_must_have_a_layout() -> None:
    with pytest.raises(TypeError, match="not the type of a field"):

        @xen_struct("wrong_t", header="", size=4)
        class Wrong(XenStruct):
            a: int = 0


def test_array_of_bytes_is_refused() -> None:
    with pytest.raises(TypeError):
        array(char(4), 2)
