"""Grant table operations as a PvGuest makes them, and a look at what became of its entries."""

from __future__ import annotations

from typing import TypeVar

from pv_guest import DOMID, SELF, PvGuest

from pyxen.abi._struct import XenStruct
from pyxen.abi.grant_table import (
    GnttabGetStatusFrames,
    GNTTABOP_get_status_frames,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GnttabSetupTable,
    GnttabSetVersion,
    GTF_permit_access,
)
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES
from pyxen.types import GrantRef

OP = "grant_table_op"
GREF = GrantRef(8)
PFN = 100
MFN = XEN_PAGES + PFN

_S = TypeVar("_S", bound=XenStruct)


def op(guest: PvGuest, command: int, structure: XenStruct, count: int = 1) -> int:
    """One operation; `structure` is what the guest finds afterwards. The result."""
    at = guest.put(structure)
    result = guest.call(OP, command, at, count)
    after = type(structure).unpack(guest.read(at, structure.SIZE))
    for field in structure.FIELDS:
        setattr(structure, field.name, getattr(after, field.name))
    return result


def status(guest: PvGuest, command: int, structure: XenStruct) -> int:
    """The status of one operation that the hypercall carried out."""
    assert op(guest, command, structure) == 0
    result: int = structure.status  # type: ignore[attr-defined]
    return result


def many(guest: PvGuest, command: int, structures: list[_S]) -> tuple[int, list[_S]]:
    """A list of operations; the result, and what the guest finds afterwards."""
    at = guest.put(b"".join(s.pack() for s in structures))
    result = guest.call(OP, command, at, len(structures))
    kind = type(structures[0])
    return result, [
        kind.unpack(guest.read(at + n * kind.SIZE, kind.SIZE)) for n in range(len(structures))
    ]


def _header(guest: PvGuest, gref: int) -> int:
    """Index of the 32-bit word with flags and domid."""
    size = 16 if guest.domain.grants.version == 2 else 8
    return ((layout.GRANT_FRAMES << 12) + gref * size) >> 2


def entry(
    guest: PvGuest, flags: int, domid: int = 0, mfn: int = MFN, gref: int = GREF, second: int = 0
) -> None:
    """Write an entry as the guest does. second: what version 2 has between header and frame."""
    at = _header(guest, gref)
    dwords = guest.memory.dwords
    dwords[at] = flags | domid << 16
    if guest.domain.grants.version == 2:
        dwords[at + 1] = second
        dwords[at + 2], dwords[at + 3] = mfn & 0xFFFF_FFFF, mfn >> 32
    else:
        dwords[at + 1] = mfn


def grant_to_itself(guest: PvGuest, flags: int = GTF_permit_access, **where: int) -> None:
    """An entry that the guest itself may use."""
    entry(guest, flags, DOMID, **where)


def flags(guest: PvGuest, gref: int = GREF) -> int:
    return guest.memory.dwords[_header(guest, gref)] & 0xFFFF


def frame(guest: PvGuest, gref: int = GREF) -> int:
    """The frame that an entry names."""
    at = _header(guest, gref)
    dwords = guest.memory.dwords
    return (
        dwords[at + 2] | dwords[at + 3] << 32
        if guest.domain.grants.version == 2
        else dwords[at + 1]
    )


def marks(guest: PvGuest, gref: int = GREF) -> int:
    """The status word of version 2."""
    at = (layout.GRANT_STATUS_FRAMES << 12) + 2 * gref
    return int.from_bytes(guest.memory.read(at, 2), "little")


def use_version(guest: PvGuest, version: int) -> None:
    assert op(guest, GNTTABOP_set_version, GnttabSetVersion(version=version)) == 0
    assert guest.domain.grants.version == version


def frames_of_table(guest: PvGuest, count: int) -> tuple[int, tuple[int, ...]]:
    """setup_table: status and frames."""
    at = guest.vaddr(90)
    setup = GnttabSetupTable(dom=SELF, nr_frames=count, frame_list=at)
    return status(guest, GNTTABOP_setup_table, setup), guest.words(at, count)


def status_frames(guest: PvGuest, count: int, **changes: int) -> tuple[int, tuple[int, ...]]:
    """get_status_frames: status and frames."""
    at = guest.vaddr(90)
    guest.write(at, bytes(8 * count))
    fields = {"dom": SELF, "nr_frames": count, "frame_list": at, **changes}
    query = GnttabGetStatusFrames(**fields)
    return status(guest, GNTTABOP_get_status_frames, query), guest.words(at, count)
