"""Uses of grants by the host: the native path does what Python does, whatever the guest does."""

from __future__ import annotations

import random
import struct
from collections import Counter
from collections.abc import Iterator
from itertools import product

import pytest

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_gntref,
    GNTST_general_error,
    GnttabCopy,
    GnttabCopyPtr,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_set_version,
    GNTTABOP_setup_table,
    GNTTABOP_swap_grant_ref,
    GNTTABOP_transfer,
    GNTTABOP_unmap_grant_ref,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapGrantRef,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_writing,
)
from pyxen.errors import XenError
from pyxen.hypervisor.grant_active import MAX_PINS, RECORD_BYTES
from pyxen.hypervisor.hypercall import continuation, table
from pyxen.hypervisor.page_audit import audit
from pyxen.hypervisor.page_types import MAX_REFERENCES
from pyxen.memory import layout
from pyxen.memory.frames import PARTIAL, FrameType
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW
from pyxen.types import GrantRef, VcpuId

from .twins import (
    DATA,
    KERNEL_L1,
    L4,
    NAMED,
    SPARE_TABLES,
    Twin,
    different_page,
    kernel,
    mfn,
    twins,
)

ROUNDS = 1200
AUDIT_EVERY = 4
NUMBERS = {row.name: row.number for row in table.ROWS}
GREFS = range(4, 14)
GRANTED = range(NAMED, NAMED + 8)
UNMAPPED = range(NAMED, NAMED + 4)
FRAMES = [mfn(n) for n in (*GRANTED, *GRANTED, *GRANTED, SPARE_TABLES, L4, KERNEL_L1)]
NO_FRAMES = [layout.GRANT_FRAMES, layout.GDT_L1, 0, (1 << 32) - 1]
DOMID, SELF = 1, 0x7FF0
XENMEM_decrease_reservation = 1
MAPPED_AT = range(NAMED + 32, NAMED + 40)

Pair = tuple[Twin, Twin]
Step = tuple[object, ...]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with twins() as two:
        if not two[1].engine.capabilities.native:
            pytest.skip(two[1].engine.capabilities.detail)
        for twin in two:
            for pfn in UNMAPPED:
                twin.set_entry(KERNEL_L1, pfn, 0)
        yield two


def hypercall(twin: Twin, name: str, *arguments: int) -> int:
    """One hypercall as often as it wants to go on; the result."""
    rest = tuple(arguments) + (0,) * (5 - len(arguments))
    while True:
        continuation.begin(twin.domain)
        try:
            return table.call(twin.domain, twin.domain.vcpus[VcpuId(0)], NUMBERS[name], rest)
        except continuation.Continue as left:
            rest = left.arguments + rest[len(left.arguments) :]


def grant_op(twin: Twin, command: int, argument: bytes) -> tuple[int, bytes]:
    """One operation of the guest: the result, and the argument afterwards."""
    twin.put(kernel(DATA), argument)
    result = hypercall(twin, "grant_table_op", command, kernel(DATA), 1)
    return result, twin.memory.read(mfn(DATA) << 12, len(argument))


def write_entry(twin: Twin, gref: int, flags: int, domid: int, frame: int, second: int = 0) -> None:
    """As the guest writes an entry of the version in use."""
    at = layout.GRANT_FRAMES << 12
    if twin.domain.grants.version == 1:
        packed = struct.pack("<HHI", flags, domid, frame & 0xFFFF_FFFF)
    else:
        packed = struct.pack("<HHIQ", flags, domid, second, frame)
    at += gref * len(packed)
    twin.memory.bytes[at : at + len(packed)] = packed


def attempt(twin: Twin, grefs: list[int], *, write: bool) -> object:
    """begin_many: the mfns, or the refusal."""
    try:
        return twin.domain.grants.begin_many(grefs, write=write)
    except XenError as refused:
        return refused.errno, getattr(refused, "status", None), str(refused)


class Both:
    """Random steps, each done by both twins with the same parameters."""

    def __init__(self, pair: Pair, seed: int) -> None:
        self.pair = pair
        self.random = random.Random(seed)
        self.begun: list[tuple[list[int], bool]] = []
        self.handles: set[int] = set()
        self.seen: Counter[tuple[str, bool]] = Counter()
        self.told: tuple[list[Step], list[Step]] = ([], [])

    def step(self) -> str:
        r = self.random
        do = r.choice(
            (
                *(self.write_entry,) * 14,
                *(self.begin,) * 24,
                *(self.begin_copy,) * 3,
                *(self.end,) * 14,
                *(self.map, self.map, self.map, self.unmap, self.copy, self.swap, self.transfer),
                *(self.set_version, self.mark, self.change_page, self.give_back, self.flush),
                *(self.trace, self.grow, self.pin, self.pin, self.come_back, self.come_back),
            )
        )
        do()
        return do.__name__

    def same(self, what: str, outcomes: list[object]) -> object:
        assert outcomes[0] == outcomes[1], what
        return outcomes[0]

    def write_entry(self) -> None:
        r = self.random
        flags = r.choice((*(GTF_permit_access,) * 9, 0, 2, GTF_transitive))
        flags |= r.choice((0,) * 6 + (GTF_readonly, GTF_sub_page, GTF_reading | GTF_writing))
        entry = (
            r.choice(GREFS),
            flags,
            r.choice((0, 0, 0, 0, DOMID, DOMID, DOMID, 5)),
            r.choice((*FRAMES * 3, *NO_FRAMES, mfn(NAMED) | 1 << 32)),
            r.choice((0, 64 | 512 << 16)),
        )
        for twin in self.pair:
            write_entry(twin, *entry)

    def begin(self) -> None:
        r = self.random
        grefs = r.choices(GREFS, k=r.choice((0, 1, 1, 1, 2, 3)))
        if r.random() < 0.1:
            grefs.append(r.choice((1 << 15, (1 << 32) - 1, 1 << 32, -1)))
        if r.random() < 0.05:
            grefs *= 60
        write = r.random() < 0.5
        began = self.same("begin", [attempt(twin, grefs, write=write) for twin in self.pair])
        self.seen["begin", isinstance(began, list)] += 1
        if isinstance(began, list):
            self.begun.append((grefs, write))

    def begin_copy(self) -> None:
        """Sub-page grants can be in use by the host, too."""
        gref, write = self.random.choice(GREFS), self.random.random() < 0.5
        outcomes: list[object] = []
        for twin in self.pair:
            try:
                outcomes.append(twin.domain.grants.begin_copy(GrantRef(gref), write=write))
            except XenError as refused:
                outcomes.append(str(refused))
        if isinstance(self.same("begin_copy", outcomes), tuple):
            self.begun.append(([gref], write))

    def end(self) -> None:
        if not self.begun:
            return
        grefs, write = self.begun.pop(self.random.randrange(len(self.begun)))
        if self.random.random() < 0.3:  # in two parts, in another order
            self.random.shuffle(grefs)
            at = self.random.randrange(len(grefs) + 1)
            self.begun.append((grefs[at:], write))
            grefs = grefs[:at]
        for twin in self.pair:
            twin.domain.grants.end_many(tuple(grefs), write=write)

    # --- what the guest does ------------------------------------------------------------------

    def op(self, command: int, argument: bytes) -> tuple[int, bytes]:
        one, other = (grant_op(twin, command, argument) for twin in self.pair)
        assert one == other, command
        return one

    def map(self) -> None:
        r = self.random
        wanted = GnttabMapGrantRef(
            host_addr=kernel(r.choice(MAPPED_AT)),
            flags=GNTMAP_host_map | r.choice((0, GNTMAP_readonly)),
            ref=r.choice(GREFS),
            dom=DOMID,
        )
        _, after = self.op(GNTTABOP_map_grant_ref, wanted.pack())
        done = GnttabMapGrantRef.unpack(after)
        self.seen["map", done.status == 0] += 1
        if done.status == 0:
            self.handles.add(done.handle << 64 | done.host_addr)

    def unmap(self) -> None:
        if not self.handles:
            return
        mapped = self.random.choice(sorted(self.handles))
        undo = GnttabUnmapGrantRef(handle=mapped >> 64, host_addr=mapped & (1 << 64) - 1)
        _, after = self.op(GNTTABOP_unmap_grant_ref, undo.pack())
        if GnttabUnmapGrantRef.unpack(after).status == 0:
            self.handles.remove(mapped)

    def copy(self) -> None:
        r = self.random
        ends = [GnttabCopyPtr(u=r.choice((*GREFS, *FRAMES)), domid=SELF) for _ in range(2)]
        wanted = GnttabCopy(source=ends[0], dest=ends[1], len=16, flags=r.randrange(4))
        self.op(GNTTABOP_copy, wanted.pack())

    def swap(self) -> None:
        one, other = self.random.choices(GREFS, k=2)
        self.op(GNTTABOP_swap_grant_ref, GnttabSwapGrantRef(ref_a=one, ref_b=other).pack())

    def transfer(self) -> None:
        wanted = GnttabTransfer(
            mfn=self.random.choice(FRAMES), domid=DOMID, ref=self.random.choice(GREFS)
        )
        self.op(GNTTABOP_transfer, wanted.pack())

    def set_version(self) -> None:
        if self.random.random() < 0.3:  # else it is mostly refused: something is in use
            while self.begun:
                self.end()
            while self.handles:
                before = len(self.handles)
                self.unmap()
                if len(self.handles) == before:
                    break
            for twin, gref in product(self.pair, range(8)):
                write_entry(twin, gref, GTF_permit_access, 0, mfn(NAMED))
        wanted = GnttabSetVersion(version=self.random.choice((1, 2)))
        self.op(GNTTABOP_set_version, wanted.pack())
        version = self.same("version", [twin.domain.grants.version for twin in self.pair])
        self.seen["version 2", version == 2] += 1

    def grow(self) -> None:
        frames = self.random.choice((1, 1, 2, 3))
        wanted = GnttabSetupTable(dom=SELF, nr_frames=frames, frame_list=kernel(DATA, 512))
        self.op(GNTTABOP_setup_table, wanted.pack())

    def mark(self) -> None:
        """The guest clears or sets what the hypervisor wrote."""
        gref, status = self.random.choice(GREFS), self.random.random() < 0.5
        size = 2 if status else {1: 8, 2: 16}[self.pair[0].domain.grants.version]
        at = ((layout.GRANT_STATUS_FRAMES if status else layout.GRANT_FRAMES) << 12) + gref * size
        value = self.random.choice((0, 1, 1, 9, 0x19))
        for twin in self.pair:
            twin.memory.bytes[at] = value

    def change_page(self) -> None:
        """Map a granted page, or not; for writing, or not."""
        pfn = self.random.choice(GRANTED)
        rights = self.random.choice((None, PTE_PRESENT, PTE_PRESENT | PTE_RW))
        for twin in self.pair:
            twin.set_entry(KERNEL_L1, pfn, 0 if rights is None else mfn(pfn) << 12 | rights)

    def pin(self) -> None:
        """Make a page a table, or no table any more."""
        pfn, pin = self.random.choice((*UNMAPPED, SPARE_TABLES)), self.random.random() < 0.5
        outcomes: list[object] = []
        for twin in self.pair:
            continuation.begin(twin.domain)
            try:
                if pin:
                    twin.domain.types.pin(mfn(pfn), FrameType.L1)
                else:
                    twin.domain.types.unpin(mfn(pfn))
                outcomes.append(None)
            except XenError as refused:
                outcomes.append(str(refused))
        self.same("pin", outcomes)

    def give_back(self) -> None:
        """decrease_reservation, mostly of a frame in use; a free one comes back at once."""
        pfn = self.random.choice(UNMAPPED)
        argument = struct.pack("<QQIHxx", kernel(DATA, 256), 1, 0, SELF)
        results: list[object] = []
        for twin in self.pair:
            twin.put(kernel(DATA, 256), mfn(pfn).to_bytes(8, "little"))
            twin.put(kernel(DATA), argument)
            results.append(hypercall(twin, "memory_op", XENMEM_decrease_reservation, kernel(DATA)))
        self.same("decrease_reservation", results)

    def come_back(self) -> None:
        """Free frames are the guest's again."""
        while True:
            outcomes: list[object] = []
            for twin in self.pair:
                try:
                    outcomes.append(twin.domain.reservation.allocate())
                except XenError as full:
                    outcomes.append(full.errno)
            if not self.same("allocate", outcomes) or outcomes[0] is E.NOMEM:
                return

    def flush(self) -> None:
        for twin in self.pair:
            twin.domain.flush_tlb()

    def trace(self) -> None:
        """Somebody traces from now on, or does not any more."""
        on = self.random.random() < 0.3
        for twin, told in zip(self.pair, self.told, strict=True):
            twin.domain.grants.on_use = (lambda *use, told=told: told.append(use)) if on else None

    # --- what must be the same ----------------------------------------------------------------

    def compare(self) -> None:
        one, other = (twin.domain for twin in self.pair)
        assert bytes(one.frames._map) == bytes(other.frames._map)
        assert one.grants.uses == other.grants.uses
        length = RECORD_BYTES * one.grants.entries.count
        assert one.grants._active._map[:length] == other.grants._active._map[:length]
        assert different_page(*self.pair) is None
        assert self.told[0] == self.told[1]


@pytest.mark.parametrize("seed", range(4))
def test_random_uses(pair: Pair, seed: int) -> None:
    both = Both(pair, seed)
    for n in range(ROUNDS):
        done = both.step()
        both.compare()
        if n % AUDIT_EVERY == 0:
            for twin in pair:
                twin.settle()
            both.compare()
            assert audit(pair[1].domain) == [], (n, done)  # and so for the other
    for what, least in (("begin", 40), ("map", 1), ("version 2", 1)):
        assert both.seen[what, True] >= least, both.seen
        assert both.seen[what, False] >= least, both.seen
    assert pair[1].domain.pv.counters["grant"] >= 40
    assert pair[0].domain.pv.counters["grant"] == 0
    for grefs, write in both.begun:
        for twin in pair:
            twin.domain.grants.end_many(grefs, write=write)
    both.compare()


def grant_all(pair: Pair, flags: int = GTF_permit_access) -> None:
    for twin in pair:
        for gref, pfn in zip(GREFS, GRANTED, strict=False):
            write_entry(twin, gref, flags, 0, mfn(pfn))


def native_uses(pair: Pair) -> int:
    """How many uses were begun natively since the start."""
    return pair[1].domain.pv.counters["grant"]


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("write", [False, True])
def test_plain_uses_are_native(pair: Pair, write: bool, version: int) -> None:
    both = Both(pair, 0)
    both.op(GNTTABOP_set_version, GnttabSetVersion(version=version).pack())
    grant_all(pair)
    grefs = [4, 5, 6, 4, 7]
    wanted = [mfn(NAMED + n) for n in (0, 1, 2, 0, 3)]
    assert [attempt(twin, grefs, write=write) for twin in pair] == [wanted, wanted]
    assert native_uses(pair) == 5
    both.compare()
    uses = pair[1].domain.grants.uses
    assert uses[GrantRef(4)] == ((0, 2) if write else (2, 0))
    for twin in pair:
        twin.domain.grants.end_many(grefs, write=write)
        assert twin.domain.grants.uses == {}
        assert audit(twin.domain) == []
    both.compare()


def test_all_or_nothing(pair: Pair) -> None:
    both = Both(pair, 0)
    grant_all(pair)
    for twin in pair:
        write_entry(twin, 6, GTF_permit_access | GTF_readonly, 0, mfn(NAMED))
        before = twin.page(layout.GRANT_FRAMES)
        assert attempt(twin, [4, 5, 6, 7], write=True) == (
            E.ACCES,
            GNTST_general_error,
            "EACCES: the grant is read-only",
        )
        assert twin.domain.grants.uses == {}
        assert twin.page(layout.GRANT_FRAMES) == before
    assert native_uses(pair) == 2
    both.compare()


def test_python_does_one_and_native_code_goes_on(pair: Pair) -> None:
    """The middle one is the last use of a frame that the guest gave back: it has to be freed."""
    both = Both(pair, 0)
    both.op(GNTTABOP_set_version, GnttabSetVersion(version=2).pack())
    grant_all(pair)
    for twin in pair:
        assert attempt(twin, [4, 5, 6], write=False) == [mfn(NAMED + n) for n in range(3)]
    released = []
    for twin in pair:
        assert not twin.domain.types.release(mfn(NAMED + 1))
        twin.domain.types.on_free = released.append
        twin.domain.grants.end_many([4, 5, 6], write=False)
        assert twin.domain.grants.uses == {}
    assert released == [mfn(NAMED + 1)] * 2, "Python frees it, natively it cannot be freed"
    both.compare()


@pytest.mark.parametrize("write", [False, True])
def test_too_many_uses(pair: Pair, write: bool) -> None:
    both = Both(pair, 0)
    grant_all(pair)
    for twin in pair:
        assert isinstance(attempt(twin, [4] * MAX_PINS, write=write), list)
        assert attempt(twin, [5, 4], write=write) == (
            E.BUSY,
            GNTST_general_error,
            "EBUSY: in use too often",
        )
        assert isinstance(attempt(twin, [4] * MAX_PINS, write=not write), list)
    both.compare()


@pytest.mark.parametrize("spare", [0, 1, 2])
@pytest.mark.parametrize("write", [False, True])
def test_references_that_would_overflow(pair: Pair, write: bool, spare: int) -> None:
    both = Both(pair, 0)
    grant_all(pair)
    outcomes = []
    for twin in pair:
        twin.domain.frames.dwords[mfn(NAMED) * 4 + 2] = MAX_REFERENCES - spare
        outcomes.append(attempt(twin, [4], write=write))
    both.same("begin", outcomes)
    assert isinstance(outcomes[0], list) == (spare > write)
    both.compare()


def test_what_is_for_copies_stays_so(pair: Pair) -> None:
    """A sub-page grant that became one of a whole page while it was in use."""
    both = Both(pair, 0)
    both.op(GNTTABOP_set_version, GnttabSetVersion(version=2).pack())
    for twin in pair:
        write_entry(twin, 4, GTF_permit_access | GTF_sub_page, 0, mfn(NAMED), 64 | 512 << 16)
        assert twin.domain.grants.begin_copy(GrantRef(4), write=False) == (mfn(NAMED), 64, 512)
        write_entry(twin, 4, GTF_permit_access, 0, mfn(NAMED))
        refused = (E.INVAL, GNTST_general_error, "EINVAL: reference 4 is for copies only")
        assert attempt(twin, [4], write=False) == attempt(twin, [4], write=True) == refused
        twin.domain.grants.end_many([4], write=False)
    both.compare()


def test_a_table_whose_validation_stopped(pair: Pair) -> None:
    """Nobody uses it yet, but entries hold references: it may be read, and not written."""
    both = Both(pair, 0)
    grant_all(pair)
    for twin in pair:
        at = mfn(NAMED) * 4
        twin.domain.frames.dwords[at] = FrameType.L1 | PARTIAL
        twin.domain.frames.dwords[at + 2] = 1
        refused = attempt(twin, [5, 4], write=True)
        assert isinstance(refused, tuple), refused
        assert refused[:2] == (E.BUSY, GNTST_general_error)
        assert twin.domain.frames.flags(mfn(NAMED)) == PARTIAL
        assert attempt(twin, [5, 4], write=False) == [mfn(NAMED + 1), mfn(NAMED)]
    both.compare()


def test_a_trace_sees_every_use(pair: Pair) -> None:
    grant_all(pair)
    for twin in pair:
        told: list[tuple[str, int, bool]] = []
        twin.domain.grants.on_use = lambda *use, told=told: told.append(use)
        attempt(twin, [4, 5], write=True)
        twin.domain.grants.end_many([4, 5], write=True)
        assert told == [(what, n, True) for what in ("grant_map", "grant_unmap") for n in (4, 5)]
    assert native_uses(pair) == 0


@pytest.mark.parametrize("grefs", [[-1], [1 << 32], [(1 << 32) - 1], [512], [4, -1]])
def test_references_that_there_are_not(pair: Pair, grefs: list[int]) -> None:
    """Not even where an entry lies behind the table."""
    grant_all(pair)
    for twin in pair:
        write_entry(twin, 512, GTF_permit_access, 0, mfn(NAMED))
        refused = attempt(twin, grefs, write=False)
        assert refused == (
            E.INVAL,
            GNTST_bad_gntref,
            f"EINVAL: there is no grant reference {grefs[-1]}",
        )
        assert twin.domain.grants.uses == {}


@pytest.mark.parametrize("native", [0, 1])
def test_to_end_what_did_not_begin_is_an_error_of_ours(pair: Pair, native: int) -> None:
    grants = pair[native].domain.grants
    grant_all(pair)
    grants.begin_many([4], write=False)
    for grefs, write in (([5], False), ([4], True)):
        with pytest.raises(ValueError, match="not in use like that"):
            grants.end_many(grefs, write=write)
    assert grants.uses == {GrantRef(4): (1, 0)}
