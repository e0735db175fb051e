"""The JSON that `xl create -n` and `xl list -l` print.

Source: the golden outputs of xl 4.17 and tools/libs/light/gentypes.py: keys in the order of the
fields, fields that have their default left out, nested structures always there, defbools as the
strings "True" and "False", four spaces a level, and an empty line inside an empty {} or [].
"""

from collections.abc import Iterator
from dataclasses import MISSING, Field, fields
from typing import cast

from pyxen.config.record import Record

Plain = None | bool | int | str | list["Plain"] | dict[str, "Plain"]

_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\f": "\\f", "\n": "\\n", "\r": "\\r"} | {
    "\t": "\\t"
}
_INDENT = "    "


def to_xl_json(record: Record) -> str:
    """Return a configuration, or a part of one, as xl prints it, ending in a newline.

    A byte of the file that was not UTF-8 comes out as `\\udcXX`, so that the text is printable
    everywhere and still reads back to the same byte.
    """
    return "".join(_write(to_plain(record), "")) + "\n"


def to_plain(record: Record) -> dict[str, Plain]:
    """Return a record as the dictionaries, lists and scalars of its JSON."""
    plain: dict[str, Plain] = {}
    always = getattr(record, "always", ())
    kind = type(record)
    for name, default, metadata in _LAYOUTS.get(kind) or _layout(kind):
        value = getattr(record, name)
        if metadata.get("printed") is False:
            continue
        if "order" in metadata:
            order = cast("tuple[str, ...]", metadata["order"])
            plain.update((key, value[key]) for key in order if key in value)
        elif isinstance(value, Record):
            plain[value.union_key or name] = to_plain(value)
        elif isinstance(value, bool):
            # libxl's defbools are strings in JSON, and printed once they are decided.
            if default is not False:
                plain[name] = str(value)
            elif value:
                plain[name] = True
        elif name in always or (value not in (None, []) and value != default):
            plain[name] = _plain(value)
    return plain


Layout = tuple[tuple[str, object, dict[str, object]], ...]
"""The fields of a record in order: name, default, metadata."""

_LAYOUTS: dict[type[Record], Layout] = {}


def _layout(kind: type[Record]) -> Layout:
    _LAYOUTS[kind] = tuple((f.name, _default(f), dict(f.metadata)) for f in fields(kind))
    return _LAYOUTS[kind]


def _default(f: Field[object]) -> object:
    return None if f.default is MISSING else f.default


def _plain(value: object) -> Plain:
    if isinstance(value, Record):
        return to_plain(value)
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return cast("Plain", value)


def _write(value: Plain, indent: str) -> Iterator[str]:
    if isinstance(value, dict):
        pairs = [(f"{_quoted(key)}: ", item) for key, item in value.items()]
        yield from _write_members("{", pairs, "}", indent)
    elif isinstance(value, list):
        yield from _write_members("[", [("", item) for item in value], "]", indent)
    elif isinstance(value, str):
        yield _quoted(value)
    elif isinstance(value, bool):
        yield "true" if value else "false"
    else:
        yield "null" if value is None else str(value)


def _write_members(
    opening: str, members: list[tuple[str, Plain]], closing: str, indent: str
) -> Iterator[str]:
    inner = indent + _INDENT
    yield opening + "\n"
    for number, (key, item) in enumerate(members):
        yield (",\n" if number else "") + inner + key
        yield from _write(item, inner)
    yield "\n" + indent + closing


def _quoted(text: str) -> str:
    return '"' + "".join(map(_escaped, text)) + '"' if not text.isalnum() else f'"{text}"'


def _escaped(character: str) -> str:
    code = ord(character)
    if character in _ESCAPES:
        return _ESCAPES[character]
    if code < 0x20:
        return f"\\u{code:04X}"
    return f"\\u{code:04x}" if 0xD800 <= code < 0xE000 else character
