"""What a hypercall says, in Xen's names: for `xl trace` and the crash report.

`begin` reads the arguments before the call, while the structures they point to are as the guest
made them; `Decoding.end` reads what the call wrote back. Nothing here raises, whatever the guest
wrote; of a list only the first SHOWN entries are read. Sources: the public headers, through abi/.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from struct import Struct
from typing import Any, NamedTuple

from pyxen.abi._struct import XenStruct
from pyxen.abi.errno import E
from pyxen.abi.xen import DOMID_FIRST_RESERVED, MmuextOp, MmuUpdate
from pyxen.cpu.pvstate import MAX_ERRNO
from pyxen.hypervisor.hypercall import table
from pyxen.hypervisor.hypercall.subcommands import COMMANDS, MMUEXT, Command
from pyxen.types import U32, U64

SHOWN = 4
"""Entries of a list that are shown; its length is shown, too."""
_LARGEST_DECIMAL = 65535

Value = int | str
Fields = dict[str, Value]
Read = Callable[[int, int], bytes | None]
"""(guest virtual address, length in bytes) -> a copy, or None."""

# Arguments and fields whose values have names: field name -> (module of abi, prefix of the names).
_NAMED = {
    "virq": ("xen", "VIRQ_"),
    "which": ("arch_x86", "SEGBASE_"),
}
# The same, where the name of the field means this in one hypercall only.
_NAMED_IN = {
    ("sched_op", "reason"): ("sched", "SHUTDOWN_"),
    ("vm_assist", "type"): ("xen", "VMASST_TYPE_"),
    ("callback_op", "type"): ("callback", "CALLBACKTYPE_"),
    ("grant_table_op", "status"): ("grant_table", "GNTST_"),
    ("event_channel_op", "status"): ("event_channel", "EVTCHNSTAT_"),
    ("memory_op", "space"): ("memory", "XENMAPSPACE_"),
}
_MMU_UPDATE = {0: "NORMAL", 1: "MACHPHYS", 2: "PRESERVE_AD", 3: "NO_TRANSLATE"}
_NO_NAMES = ("DOMID_FIRST_RESERVED", "DOMID_MASK", "SHUTDOWN_MAX")
"""Bounds, not names of a value."""
_DOMIDS = ("dom", "domid", "remote_dom", "foreigndom", "domain_id")
_ADDRESS_NAMES = (
    "mfn src_mfn linear_addr ptr val va base esp addr address maddr desc host_addr new_addr "
    "dev_bus_addr gpfn control_gfn array_gfn gmfn arg uop ureqs uops pdone traps frame_list "
    "call_list event failsafe syscall buffer ports extent_start v_start v_end bitmap "
    "ss rip vector error_code"
)
_ADDRESSES = frozenset(_ADDRESS_NAMES.split())


class Called(NamedTuple):
    """One hypercall, decoded.

    op: the sub-command without its prefix, "" if the hypercall has none (or several: see entries).
    entries: of a list, each (op, fields). out: what the call wrote back.
    """

    name: str
    op: str
    fields: Fields
    entries: list[tuple[str, Fields]]
    more: int
    out: Fields

    def text(self) -> str:
        """As it is shown, without the result: `event_channel_op send port=5`."""
        words = [self.name]
        if self.op and not self.entries:
            words.append(self.op)
        words += _words(self.fields)
        if self.entries:
            listed = [" ".join((*([op] if op else []), *_words(f))) for op, f in self.entries]
            if self.more:
                listed.append(f"{self.more} more")
            words.append(listed[0] if len(listed) == 1 else "; ".join(listed))
        return " ".join(words)

    def out_text(self) -> str:
        """What the call wrote back, as it is shown behind the result."""
        return " ".join(_words(self.out))


def result_text(result: int) -> str:
    """A result: -EINVAL, a small number, or an address."""
    if -MAX_ERRNO <= result < 0:
        try:
            return f"-{E(-result).cname}"
        except ValueError:
            return str(result)
    return number_text("", result)


def number_text(name: str, value: Value) -> str:
    """A value as it is shown: addresses and large numbers in hexadecimal."""
    if isinstance(value, str) or name.endswith("_ns"):
        return str(value)
    if (name in _ADDRESSES and value > 9) or value > _LARGEST_DECIMAL:
        return hex(value)
    return str(value)


def _words(fields: Fields) -> list[str]:
    return [f"{name}={number_text(name, value)}" for name, value in fields.items()]


@dataclass(slots=True)
class Decoding:
    """A hypercall that is under way."""

    name: str
    op: str = ""
    fields: Fields = field(default_factory=dict)
    entries: list[tuple[str, Fields]] = field(default_factory=list)
    more: int = 0
    _written: list[tuple[int, Command]] = field(default_factory=list)

    def end(self, read: Read) -> Called:
        """After the call: what it wrote back is read."""
        out: Fields = {}
        for at, command in self._written:
            raw = read(at, command.size)
            if raw is not None and command.structure is not None:
                found = command.structure.unpack(raw)
                out |= _named(self.name, found, command.out)
        return Called(self.name, self.op, self.fields, self.entries, self.more, out)

    def writes(self, at: int, command: Command) -> None:
        """The call writes to this structure."""
        if command.out:
            self._written.append((at, command))


def begin(number: int, arguments: tuple[int, ...], read: Read | None) -> Decoding:
    """Before the call. Without `read` (the call is long past) pointers stay what they are."""
    row = table.row_of(number)
    found = Decoding(row.name)
    given = dict(zip(row.arguments, arguments, strict=False))
    special = _LISTS.get(row.name)
    if special is not None:
        special(found, given, read)
    elif "cmd" in given:
        _command(found, given, read)
    else:
        found.fields.update(_plain(row.name, given))
    return found


def describe(number: int, arguments: tuple[int, ...], result: int) -> str:
    """One line for a hypercall of the past."""
    called = begin(number, arguments, None).end(lambda at, length: None)
    return f"{called.text()} -> {result_text(result)}"


def _plain(name: str, given: Mapping[str, int]) -> Fields:
    return {key: _value(name, key, value) for key, value in given.items()}


def _value(name: str, key: str, value: int) -> Value:
    """A value, by its name where it has one."""
    where = _NAMED_IN.get((name, key)) or _NAMED.get(key)
    if where is not None:
        return names(*where).get(value, value)
    if key in _DOMIDS and value & U32 >= DOMID_FIRST_RESERVED:
        return names("xen", "DOMID_").get(value & U32, value)
    return value


@cache
def names(module: str, prefix: str) -> dict[int, str]:
    """Values of the constants of a module of abi, and their names without the prefix.

    Where two have one value, the first counts.
    """
    found: dict[int, str] = {}
    for name, value in vars(import_module(f"pyxen.abi.{module}")).items():
        if name.startswith(prefix) and isinstance(value, int) and name not in _NO_NAMES:
            found.setdefault(value, name.removeprefix(prefix))
    return found


@cache
def _command_names(module: str, prefix: str) -> dict[int, str]:
    """The commands of a hypercall. Headers list them in ascending order; other constants with the
    same prefix come later, and begin again with small numbers."""
    found: dict[int, str] = {}
    for value, name in names(module, prefix).items():
        if value < max(found, default=0):
            break
        found[value] = name
    return found


def _command(found: Decoding, given: dict[str, int], read: Read | None) -> None:
    """A hypercall with a command, and mostly a pointer to the command's structure."""
    family = COMMANDS.get(found.name)
    value = given.pop("cmd") & U32
    found.op = str(value)
    if family is None:
        found.fields.update(_plain(found.name, given))
        return
    found.op = _command_names(family.module, family.prefix).get(value, str(value))
    command = family.commands.get(found.op, Command())
    at = given.get(family.pointer, 0)
    structure = command.structure
    if structure is None or read is None or (family.pointer == "arg" and not at):
        if not command.pointless:
            found.fields.update(_plain(found.name, given))
        return
    del given[family.pointer]
    count = given.pop("count", 1) & U32 if family.pointer == "uop" else 1
    found.fields.update(_plain(found.name, given))
    if count != 1:
        found.fields["count"] = count
    for n in range(min(count, SHOWN)):
        place = at + n * command.size & U64
        raw = read(place, command.size)
        if raw is None:
            found.fields[family.pointer] = place
            return
        shown = _named(found.name, structure.unpack(raw), command.fields)
        if count == 1:
            found.fields.update(shown)
            found.writes(place, command)
        else:
            found.entries.append(("", shown))
    found.more = max(0, count - SHOWN)


def _named(name: str, structure: XenStruct, fields: tuple[str, ...]) -> Fields:
    shown: Fields = {}
    for path in fields:
        value: Any = structure
        for part in path.split("."):
            value = getattr(value, part)
        key = path.replace("_.", ".").replace(".", "_")
        shown[key] = _value(name, key, value)
    return shown


def _batch(
    found: Decoding,
    given: dict[str, int],
    read: Read | None,
    size: int,
    one: Callable[[bytes], tuple[str, Fields]],
) -> None:
    """mmu_update and mmuext_op: a list of records."""
    pointer = next(iter(given))
    at, count = given[pointer], given["count"] & U32 & ~(1 << 31)
    if read is None:
        found.fields.update(_plain(found.name, given))
        return
    if count != 1:
        found.fields["count"] = count
    domid = _value(found.name, "domid", given.get("domid", given.get("foreigndom", 0)) & U32)
    if domid != "SELF":
        found.fields["domid"] = domid
    for n in range(min(count, SHOWN)):
        raw = read(at + n * size & U64, size)
        if raw is None:
            found.fields[pointer] = at
            return
        found.entries.append(one(raw))
    found.more = max(0, count - SHOWN)
    if len({op for op, _ in found.entries}) == 1:
        found.op = found.entries[0][0]


def _mmu_update(found: Decoding, given: dict[str, int], read: Read | None) -> None:
    def one(raw: bytes) -> tuple[str, Fields]:
        update = MmuUpdate.unpack(raw)
        return _MMU_UPDATE[update.ptr & 3], {"ptr": update.ptr & ~3, "val": update.val}

    _batch(found, given, read, MmuUpdate.SIZE, one)


def _mmuext_op(found: Decoding, given: dict[str, int], read: Read | None) -> None:
    def one(raw: bytes) -> tuple[str, Fields]:
        op = MmuextOp.unpack(raw)
        name = names("xen", "MMUEXT_").get(op.cmd, str(op.cmd))
        values = {"mfn": op.arg1, "linear_addr": op.arg1, "nr_ents": op.arg2 & U32}
        values["src_mfn"] = op.arg2
        return name, {key: values[key] for key in MMUEXT.get(name, ("mfn",))}

    _batch(found, given, read, MmuextOp.SIZE, one)


def _console_io(found: Decoding, given: dict[str, int], read: Read | None) -> None:
    op = given.get("cmd", 0) & U32
    found.op = names("xen", "CONSOLEIO_").get(op, str(op))
    found.fields["count"] = given.get("count", 0) & U32


def _update_va_mapping(found: Decoding, given: dict[str, int], read: Read | None) -> None:
    flags = given.pop("flags", 0)
    found.fields.update(_plain(found.name, given))
    kind = ("", "TLB_FLUSH", "INVLPG", "3")[flags & 3]
    if kind:
        found.fields["flush"] = kind
    if flags >> 2 == 1:
        found.fields["cpus"] = "ALL"
    elif flags >> 2:
        found.fields["cpus"] = hex(flags & ~3)


def _set_gdt(found: Decoding, given: dict[str, int], read: Read | None) -> None:
    count = given.get("entries", 0) & U32
    frames = -(-count // 512)
    raw = read(given.get("frame_list", 0), 8 * min(frames, 16)) if read is not None else None
    if raw:
        mfns = Struct(f"<{len(raw) // 8}Q").unpack(raw)
        found.fields["mfns"] = ",".join(hex(mfn) for mfn in mfns)
        found.fields["entries"] = count
    else:
        found.fields.update(given)


_LISTS: dict[str, Callable[[Decoding, dict[str, int], Read | None], None]] = {
    "mmu_update": _mmu_update,
    "mmuext_op": _mmuext_op,
    "console_io": _console_io,
    "update_va_mapping": _update_va_mapping,
    "update_va_mapping_otherdomain": _update_va_mapping,
    "set_gdt": _set_gdt,
}
