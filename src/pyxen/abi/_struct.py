"""How a structure of Xen's ABI is declared: once, as a class whose annotations are its fields.

    @xen_struct("evtchn_send_t", header="event_channel.h", size=4)
    class EvtchnSend(XenStruct):
        port: u32 = 0

Offsets follow the C rules of the x86-64 ABI (little-endian, natural alignment). The stated size
is checked while the module is imported. A field is one of

    u8 u16 u32 u64 s8 s16 s32 s64        an int
    ptr                                  an int: a guest virtual address (a guest handle)
    Other                                a nested structure; default `Other()`
    Annotated[tuple[int, ...], array(u64, 8)]        a tuple of ints; default `()`: all zero
    Annotated[tuple[Other, ...], array(Other, 32)]   a tuple of structures
    Annotated[bytes, char(16)]           bytes, zero-padded when packed; default `b""`: all zero
    Annotated[bytes, union(A, B, u32)]   the bytes of a C union: read them with `A.unpack(x.u)`

The default in the declaration only tells the type checker that the argument may be left out; an
omitted field is always zero. A field name may end in `_` where the C name is a Python keyword.
A module that declares structures must not postpone the evaluation of its annotations.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import (
    Annotated,
    Any,
    ClassVar,
    Final,
    Self,
    TypeAlias,
    TypeVar,
    dataclass_transform,
    get_origin,
)

ReadBuffer: TypeAlias = bytes | bytearray | memoryview
WriteBuffer: TypeAlias = bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Layout:
    """How one field lies in memory: its size and alignment in bytes, and its `struct` format."""

    size: int
    align: int
    format: str
    kind: str
    """"int", "ptr", "bytes", "union", "ints" (an array), "struct" or "structs"."""
    count: int = 1
    element: type[XenStruct] | None = None


@dataclass(frozen=True, slots=True)
class CPath:
    """The C designator of a field that lies inside an anonymous or inlined part, as `u.dom`."""

    path: str


@dataclass(frozen=True, slots=True)
class Field:
    """One field as placed: the Python name, the C designator, and the byte offset."""

    name: str
    c_path: str
    offset: int
    layout: Layout


def _scalar(code: str, kind: str = "int") -> Layout:
    size = struct.calcsize("<" + code)
    return Layout(size, size, code, kind)


u8: TypeAlias = Annotated[int, _scalar("B")]
u16: TypeAlias = Annotated[int, _scalar("H")]
u32: TypeAlias = Annotated[int, _scalar("I")]
u64: TypeAlias = Annotated[int, _scalar("Q")]
s8: TypeAlias = Annotated[int, _scalar("b")]
s16: TypeAlias = Annotated[int, _scalar("h")]
s32: TypeAlias = Annotated[int, _scalar("i")]
s64: TypeAlias = Annotated[int, _scalar("q")]
ptr: TypeAlias = Annotated[int, _scalar("Q", "ptr")]


def array(element: object, count: int) -> Layout:
    """A fixed array of integers or of structures."""
    layout = _layout_of(element)
    if layout.kind == "struct":
        size = layout.size * count
        return Layout(size, layout.align, f"{size}s", "structs", count, layout.element)
    if layout.kind not in ("int", "ptr"):
        raise TypeError("an array holds integers or structures")
    return Layout(layout.size * count, layout.align, f"{count}{layout.format}", "ints", count)


def char(size: int) -> Layout:
    """An array of `size` bytes, seen as bytes."""
    return Layout(size, 1, f"{size}s", "bytes")


def union(*variants: object) -> Layout:
    """A C union of these types, seen as its raw bytes."""
    layouts = [_layout_of(variant) for variant in variants]
    align = max(layout.align for layout in layouts)
    size = _round_up(max(layout.size for layout in layouts), align)
    return Layout(size, align, f"{size}s", "union")


def _round_up(value: int, align: int) -> int:
    return -(-value // align) * align


def _layout_of(annotation: object) -> Layout:
    if isinstance(annotation, Layout):
        return annotation
    if get_origin(annotation) is Annotated:
        metadata: tuple[object, ...] = annotation.__metadata__  # type: ignore[attr-defined]
        for item in metadata:
            if isinstance(item, Layout):
                return item
        annotation = annotation.__origin__  # type: ignore[attr-defined]
    if isinstance(annotation, type) and issubclass(annotation, XenStruct):
        size = annotation.SIZE
        return Layout(size, annotation.ALIGN, f"{size}s", "struct", 1, annotation)
    raise TypeError(f"{annotation!r} is not the type of a field")


class XenStruct:
    """Base of every declared structure. Equality compares the fields; instances are mutable."""

    __slots__ = ()

    SIZE: ClassVar[int]
    ALIGN: ClassVar[int]
    OFFSET: ClassVar[Mapping[str, int]]
    """Byte offset of each field, for word access to a mapped page."""
    FIELDS: ClassVar[tuple[Field, ...]]
    FORMAT: ClassVar[struct.Struct]
    """The whole structure flat; a nested structure or union is one `s` item."""
    C_NAME: ClassVar[str]
    HEADER: ClassVar[str]
    UNTIL: ClassVar[str]
    """Member of the C type at which this declaration stops, or empty: it is declared whole."""

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def unpack(cls, buf: ReadBuffer, offset: int = 0) -> Self:
        """Copy one structure out of a buffer, in one read. Raises struct.error if it is short."""
        raise NotImplementedError

    def pack(self) -> bytes:
        """The structure's SIZE bytes; padding is zero. Raises struct.error if a value does not fit.

        An array must have its full length; bytes may be shorter and are padded with zeros.
        """
        raise NotImplementedError

    def pack_into(self, buf: WriteBuffer, offset: int = 0) -> None:
        """Write into a buffer; padding becomes zero. Raises struct.error as `pack`."""
        raise NotImplementedError

    @classmethod
    def unpack_array(cls, buf: ReadBuffer, count: int, offset: int = 0) -> list[Self]:
        """`count` structures that lie one after another. Raises struct.error if `buf` is short."""
        if offset + count * cls.SIZE > len(buf):
            raise struct.error(f"{count} {cls.C_NAME} at {offset} do not fit {len(buf)} bytes")
        unpack = cls.unpack
        return [unpack(buf, at) for at in range(offset, offset + count * cls.SIZE, cls.SIZE)]

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return all(getattr(self, f.name) == getattr(other, f.name) for f in self.FIELDS)

    def __repr__(self) -> str:
        shown = ", ".join(f"{f.name}={getattr(self, f.name)!r}" for f in self.FIELDS)
        return f"{type(self).__name__}({shown})"


STRUCTS: Final[list[type[XenStruct]]] = []
"""Every structure declared so far in the modules of pyxen.abi, in order."""

_S = TypeVar("_S", bound=XenStruct)


@dataclass_transform(kw_only_default=True)
def xen_struct(
    c_name: str, *, header: str, size: int, max_align: int = 8, until: str = ""
) -> Callable[[type[_S]], type[_S]]:
    """Turn a class of annotations into a structure with slots, a constructor and (un)packing.

    c_name: the C type, as `struct sched_poll`, or a member of one, as `grant_entry_v2_t.full_page`.
    header: path under the public include directory; empty where no header has the type.
    size: sizeof. max_align: 1 for a packed structure, 4 for one of a 32-bit guest.
    until: the member of the C type at which the declaration stops, and to which `size` counts.
    Raises TypeError if the fields do not add up to `size`.
    """

    def declare(cls: type[_S]) -> type[_S]:
        fields, total, align = _place(cls, max_align)
        if total != size:
            raise TypeError(f"{c_name}: fields take {total} bytes, declared are {size}")
        made = _with_slots(cls, fields)
        made.SIZE = size
        made.ALIGN = align
        made.OFFSET = MappingProxyType({f.name: f.offset for f in fields})
        made.FIELDS = fields
        made.FORMAT = _format(fields, size)
        made.C_NAME = c_name
        made.HEADER = header
        made.UNTIL = until
        _add_methods(made)
        if made.__module__.startswith("pyxen.abi."):
            STRUCTS.append(made)
        return made

    return declare


def _place(cls: type[XenStruct], max_align: int) -> tuple[tuple[Field, ...], int, int]:
    """The fields with their offsets, sizeof, and the alignment of the whole."""
    fields = []
    offset, align = 0, 1
    for name, annotation in cls.__annotations__.items():
        layout = _layout_of(annotation)
        if name not in cls.__dict__ or cls.__dict__[name] not in _empty_of(layout):
            raise TypeError(f"{cls.__name__}.{name} needs the empty value of its type as default")
        field_align = min(layout.align, max_align)
        offset = _round_up(offset, field_align)
        path = name.removesuffix("_")
        for item in getattr(annotation, "__metadata__", ()):
            if isinstance(item, CPath):
                path = item.path
        fields.append(Field(name, path, offset, layout))
        offset += layout.size
        align = max(align, field_align)
    return tuple(fields), _round_up(offset, align), align


def _empty_of(layout: Layout) -> tuple[object, ...]:
    if layout.kind == "struct":
        assert layout.element is not None
        return (layout.element(),)
    return {"int": (0,), "ptr": (0,), "bytes": (b"",), "union": (b"",)}.get(layout.kind, ((),))


def _zero_of(layout: Layout) -> object:
    """The value of an omitted field; None stands for a new nested structure."""
    if layout.kind in ("bytes", "union"):
        return bytes(layout.size)
    if layout.kind == "ints":
        return (0,) * layout.count
    return 0 if layout.kind in ("int", "ptr") else None


def _format(fields: tuple[Field, ...], size: int) -> struct.Struct:
    parts = ["<"]
    end = 0
    for field in fields:
        parts.append(f"{field.offset - end}x" if field.offset > end else "")
        parts.append(field.layout.format)
        end = field.offset + field.layout.size
    parts.append(f"{size - end}x" if size > end else "")
    return struct.Struct("".join(parts))


def _with_slots(cls: type[_S], fields: tuple[Field, ...]) -> type[_S]:
    """The class made anew: slots cannot be added later, and clash with the defaults."""
    drop = {"__dict__", "__weakref__", *(f.name for f in fields)}
    namespace: dict[str, Any] = {k: v for k, v in cls.__dict__.items() if k not in drop}
    namespace["__slots__"] = tuple(f.name for f in fields)
    made: type[_S] = type.__new__(type(cls), cls.__name__, cls.__bases__, namespace)
    return made


def _new_array(element: type[XenStruct], count: int) -> tuple[XenStruct, ...]:
    return tuple([element() for _ in range(count)])


def _exactly(values: tuple[Any, ...], count: int) -> tuple[Any, ...]:
    if len(values) != count:
        raise struct.error(f"an array of {count} elements was given {len(values)}")
    return values


def _at_most(data: bytes, size: int) -> bytes:
    if len(data) > size:
        raise struct.error(f"{len(data)} bytes were given for a field of {size}")
    return data


def _add_methods(cls: type[XenStruct]) -> None:
    """Compile the constructor and the (un)packing methods, as dataclasses does.

    Straight-line code is some six times faster than a loop over the fields.
    """
    scope: dict[str, Any] = {
        "_new": object.__new__,
        "_unpack_from": cls.FORMAT.unpack_from,
        "_pack": cls.FORMAT.pack,
        "_pack_into": cls.FORMAT.pack_into,
        "_new_array": _new_array,
        "_exactly": _exactly,
        "_at_most": _at_most,
    }
    for i, field in enumerate(cls.FIELDS):
        scope[f"_zero{i}"] = _zero_of(field.layout)
        scope[f"_type{i}"] = field.layout.element
    exec(_source(cls.FIELDS), scope)
    for name in ("__init__", "pack", "pack_into"):
        setattr(cls, name, scope[name])
    cls.unpack = classmethod(scope["unpack"])  # type: ignore[assignment]


def _source(fields: tuple[Field, ...]) -> str:
    params = ", ".join(f"{f.name}=_zero{i}" for i, f in enumerate(fields))
    values = ", ".join(_packed(i, f) for i, f in enumerate(fields))
    return "\n".join(
        [
            f"def __init__(self, *, {params}):",
            *(f"    self.{f.name} = {_initial(i, f)}" for i, f in enumerate(fields)),
            "def unpack(cls, buf, offset=0):",
            "    self = _new(cls)",
            *(f"    {line}" for line in _unpacking(fields)),
            "    return self",
            "def pack(self):",
            f"    return _pack({values})",
            "def pack_into(self, buf, offset=0):",
            f"    _pack_into(buf, offset, {values})",
        ]
    )


def _initial(index: int, field: Field) -> str:
    name = field.name
    if field.layout.kind == "struct":
        return f"_type{index}() if {name} is None else {name}"
    if field.layout.kind == "structs":
        return f"_new_array(_type{index}, {field.layout.count}) if {name} is None else {name}"
    return name


def _packed(index: int, field: Field) -> str:
    value, layout = f"self.{field.name}", field.layout
    match layout.kind:
        case "bytes" | "union":
            return f"_at_most({value}, {layout.size})"
        case "ints":
            return f"*_exactly({value}, {layout.count})"
        case "struct":
            return f"{value}.pack()"
        case "structs":
            return f"b''.join([x.pack() for x in _exactly({value}, {layout.count})])"
    return value


def _unpacking(fields: tuple[Field, ...]) -> list[str]:
    if all(f.layout.kind in ("int", "ptr", "bytes", "union") for f in fields):
        targets = "".join(f"self.{f.name}, " for f in fields)
        return [f"({targets}) = _unpack_from(buf, offset)"]
    lines = ["v = _unpack_from(buf, offset)"]
    item = 0
    for i, field in enumerate(fields):
        layout = field.layout
        value = f"v[{item}]"
        if layout.kind == "ints":
            value = f"v[{item}:{item + layout.count}]"
            item += layout.count - 1
        elif layout.kind == "struct":
            value = f"_type{i}.unpack({value})"
        elif layout.kind == "structs":
            value = f"(*_type{i}.unpack_array({value}, {layout.count}),)"
        lines.append(f"self.{field.name} = {value}")
        item += 1
    return lines
