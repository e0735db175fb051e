"""The grant table of a domain: what it lets domain 0 (the host) or itself use, and what is in use.

Source: public/grant_table.h; the rules of use are those of xen/common/grant_table.c as they show
to guests: an entry is checked when its first use begins, and again for the first use that writes.
Later uses rest on what was found then, whatever the guest has made of the entry meanwhile.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import NoReturn, cast

from pyxen.abi.errno import E
from pyxen.abi.grant_table import (
    GNTTAB_NR_RESERVED_ENTRIES,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_page,
    GNTST_eagain,
    GNTST_general_error,
    GTF_accept_transfer,
    GTF_permit_access,
    GTF_reading,
    GTF_readonly,
    GTF_sub_page,
    GTF_transitive,
    GTF_writing,
)
from pyxen.cpu.base import GrantPath
from pyxen.cpu.pvstate import PvGrants
from pyxen.errors import XenError
from pyxen.hypervisor.grant_active import (
    READ,
    WRITE,
    WRITERS,
    ActiveEntries,
    Extent,
    Use,
)
from pyxen.hypervisor.grant_entries import (
    ENTRY_BYTES,
    INITIAL_FRAMES,
    Entry,
    SharedEntries,
    granted,
)
from pyxen.hypervisor.grant_maptrack import MAX_MAPTRACK_FRAMES, Maptrack
from pyxen.hypervisor.page_types import PageTypes
from pyxen.memory.frames import FrameTable
from pyxen.memory.layout import GRANT_FRAMES, GRANT_STATUS_FRAMES, MAX_GRANT_FRAMES
from pyxen.memory.machine import MachineMemory
from pyxen.types import PAGE_SHIFT, PAGE_SIZE, DomId, GrantRef, Mfn

DOMAIN_0 = DomId(0)
DOMAIN_0_ENTRIES = PAGE_SIZE // ENTRY_BYTES[1]
"""Domain 0 is the host. To guests it has a table of one frame, in which all entries are invalid."""

MAX_VERSION = 2

_START_MASK = 0x7FFF
"""Xen keeps the start of a sub-page grant in 15 bits."""


class GrantRefused(XenError):
    """A refusal with one of the GNTST_* codes for the guest; `errno` is for the back ends."""

    def __init__(self, status: int, why: str, errno: E = E.INVAL) -> None:
        super().__init__(errno, why)
        self.status = status


class GrantTable:
    """The grant table of one domain."""

    def __init__(
        self,
        memory: MachineMemory,
        frames: FrameTable,
        types: PageTypes,
        *,
        max_frames: int = MAX_GRANT_FRAMES,
        max_maptrack_frames: int = MAX_MAPTRACK_FRAMES,
        max_version: int = MAX_VERSION,
        native: GrantPath | None = None,
    ) -> None:
        """native: what begins and ends uses by the host on the words `pv`, its `domain` set."""
        self._frames = frames
        self._types = types
        self._active = ActiveEntries(
            (max(max_frames, INITIAL_FRAMES) << PAGE_SHIFT) // ENTRY_BYTES[1]
        )
        self.max_frames = max_frames
        self.max_version = max_version
        self.entries = SharedEntries(memory, frames)
        self.maptrack = Maptrack(max_maptrack_frames)
        self._native = native
        self.pv = PvGrants()
        self.pv.active = self._active.address
        self.pv.table = memory.address + (GRANT_FRAMES << PAGE_SHIFT)
        self.pv.status = memory.address + (GRANT_STATUS_FRAMES << PAGE_SHIFT)
        self._share()
        self.on_use: Callable[[str, GrantRef, bool], None] | None = None
        """Told of each use by a trace: grant_map or grant_unmap, for writing or not."""

    # --- the table ----------------------------------------------------------------------------

    @property
    def version(self) -> int:
        """1 or 2."""
        return self.entries.version

    @property
    def nr_frames(self) -> int:
        """How many frames of entries the guest has."""
        return self.entries.nr_frames

    def grow(self, nr_frames: int) -> None:
        """Have at least so many frames. Raises: XenError(ENOSPC) beyond the maximum."""
        if nr_frames > self.max_frames:
            raise XenError(E.NOSPC, f"{nr_frames} grant frames, {self.max_frames} are allowed")
        self.entries.grow(nr_frames)
        self._share()

    def _share(self) -> None:
        """Tell native code how the entries lie now."""
        self.pv.version, self.pv.entries = self.entries.version, self.entries.count

    def frame(self, index: int) -> Mfn:
        """The mfn of a frame of the table."""
        return self.entries.frame(index)

    def set_version(self, version: int) -> None:
        """GNTTABOP_set_version: all entries but the reserved ones are gone afterwards.

        Raises: XenError(EINVAL, ENOSYS) for a version that is none or not allowed, XenError(EBUSY)
        while other than reserved entries are in use, and as SharedEntries.set_version.
        """
        if version not in (1, 2):
            raise XenError(E.INVAL, f"grant table version {version}")
        if version > self.max_version:
            raise XenError(E.NOSYS, f"grant table version {version} is not allowed")
        if version == self.version:
            return
        if self._active.any_from(GNTTAB_NR_RESERVED_ENTRIES, self.entries.count):
            raise XenError(E.BUSY, "other than reserved entries are in use")
        self.entries.set_version(version)
        self._share()

    def swap(self, one: int, other: int) -> None:
        """GNTTABOP_swap_grant_ref. Raises: GrantRefused(bad_gntref, eagain)."""
        for gref in (one, other):
            self._check_gref(gref)
        if one == other:
            return
        for gref in (one, other):
            if self._active.pins(gref):
                raise GrantRefused(GNTST_eagain, f"reference {gref} is in use", E.BUSY)
        # COMMIT
        self.entries.swap(one, other)

    def seed(self, gref: GrantRef, domid: int, mfn: int) -> None:
        """Grant a frame to a domain on the guest's behalf (libxl does it for console and store)."""
        self._check_gref(gref)
        self.entries.write(gref, granted(domid, mfn))

    # --- uses ---------------------------------------------------------------------------------

    def acquire_to_map(self, gref: int, domid: int, use: Use) -> Mfn:
        """Begin to use a whole page. Raises: GrantRefused, with nothing changed."""
        self._check_gref(gref)
        active = self._active
        pins = active.pins(gref)
        if pins:
            self._check_active(gref, domid, use)
            if active.is_sub_page(gref):
                raise GrantRefused(GNTST_general_error, f"reference {gref} is for copies only")
            extent = self._extent_in_use(gref, GNTST_general_error)
        if not pins or (use.writes and not pins & WRITERS):
            entry = self.entries.read(gref)
            self._check_entry(entry, domid, first=not pins, write=use.writes, mapping=True)
            if not pins:
                extent = self._extent(entry)
        self._begin(gref, domid, extent, use, first=not pins, sub_page=False)
        return extent.mfn

    def acquire_to_copy(self, gref: int, domid: int, *, write: bool) -> Extent:
        """Begin a copy. Raises: GrantRefused, with nothing changed."""
        self._check_gref(gref)
        pins, use = self._active.pins(gref), WRITE if write else READ
        if pins:
            self._check_active(gref, domid, use)
        entry = self.entries.read(gref)
        if not pins or (write and not pins & WRITERS):
            self._check_entry(entry, domid, first=not pins, write=write, mapping=False)
        if self.version == 2 and entry.kind == GTF_transitive:
            self._refuse_transitive(gref, entry)
        if pins:
            extent = self._extent_in_use(gref, GNTST_bad_domain)
        else:
            extent = self._extent(entry)
        sub_page = self.version == 2 and bool(entry.flags & GTF_sub_page)
        self._begin(gref, domid, extent, use, first=not pins, sub_page=sub_page)
        return extent

    def release(self, gref: int, use: Use) -> None:
        """End a use that `acquire_…` began; the last one of a kind takes back its mark."""
        active = self._active
        active.check_pinned(gref, use)
        if self.on_use is not None:
            self.on_use("grant_unmap", GrantRef(gref), use.writes)
        self._let_go(active.mfn(gref), use)
        left = active.unpin(gref, use)
        marks = 0 if left else GTF_reading
        if use.writes and not left & WRITERS:
            marks |= GTF_writing
        if marks:
            self.entries.clear(gref, marks)

    def active_frame(self, gref: int) -> Mfn:
        """The frame of an entry in use."""
        return self._active.mfn(gref)

    def accepts_transfer(self, gref: int, domid: int) -> bool:
        """Whether an entry waits for a page of a domain (gnttab_prepare_for_transfer)."""
        if gref >= self.entries.count:
            return False
        entry = self.entries.read(gref)
        return entry.flags == GTF_accept_transfer and entry.domid == domid

    # --- uses by the host ---------------------------------------------------------------------

    def begin(self, gref: GrantRef, *, write: bool) -> Mfn:
        """Start to use a granted page as domain 0 does that maps it.

        Raises: XenError(EINVAL) for a reference that grants no whole page, XenError(EACCES) for
        writing to a read-only grant or for a grant to another domain, XenError(EBUSY) when it is
        in use too often, or for writing to a page table.
        """
        return self.acquire_to_map(gref, DOMAIN_0, WRITE if write else READ)

    def begin_copy(self, gref: GrantRef, *, write: bool) -> Extent:
        """As `begin`, for a copy, of a sub-page grant too. The caller stays inside the extent."""
        return self.acquire_to_copy(gref, DOMAIN_0, write=write)

    def end(self, gref: GrantRef, *, write: bool) -> None:
        """Stop to use what `begin` or `begin_copy` gave."""
        self.release(gref, WRITE if write else READ)

    def begin_many(self, grefs: Sequence[int], *, write: bool) -> list[Mfn]:
        """`begin` for each, all or nothing; references may repeat. Raises: XenError, as `begin`."""
        native, refs = self._natively(grefs)
        mfns: list[Mfn] = []
        done = 0
        try:
            if native is None:
                use = WRITE if write else READ
                for gref in grefs:
                    mfns.append(self.acquire_to_map(gref, DOMAIN_0, use))
                    done += 1
                return mfns
            while (done := native.begin(self.pv, refs, done, write=write)) < len(refs):
                refs[done] = self.begin(GrantRef(grefs[done]), write=write)
                done += 1
        except XenError:
            self.end_many(grefs[:done], write=write)
            raise
        return cast("list[Mfn]", refs.tolist())

    def end_many(self, grefs: Sequence[int], *, write: bool) -> None:
        """`end` for each."""
        native, refs = self._natively(grefs)
        if native is None:
            use = WRITE if write else READ
            for gref in grefs:
                self.release(gref, use)
            return
        done = 0
        while (done := native.end(self.pv, refs, done, write=write)) < len(refs):
            self.end(GrantRef(refs[done]), write=write)
            done += 1

    def _natively(self, grefs: Sequence[int]) -> tuple[GrantPath | None, array[int]]:
        """The native path, if it can be taken, and the references as it takes them."""
        if self._native is not None and self.on_use is None:
            try:
                return self._native, array("I", grefs)
            except OverflowError:
                pass  # `begin` says what is wrong with such a reference
        return None, array("I")

    @property
    def uses(self) -> dict[GrantRef, tuple[int, int]]:
        """References in use: (readers, writers)."""
        return {GrantRef(gref): self._active.counts(gref) for gref in self._in_use()}

    def _in_use(self) -> Iterator[int]:
        return self._active.in_use(self.entries.count)

    # --- checks -------------------------------------------------------------------------------

    def _check_gref(self, gref: int) -> None:
        if not 0 <= gref < self.entries.count:
            raise GrantRefused(GNTST_bad_gntref, f"there is no grant reference {gref}")

    def _check_active(self, gref: int, domid: int, use: Use) -> None:
        if self._active.domid(gref) != domid:
            raise GrantRefused(GNTST_general_error, "in use by another domain", E.ACCES)
        if self._active.overflows(gref, use):
            raise GrantRefused(GNTST_general_error, "in use too often", E.BUSY)

    def _check_entry(
        self, entry: Entry, domid: int, *, first: bool, write: bool, mapping: bool
    ) -> None:
        """What an entry has to say for its first use, and for the first one that writes."""
        if first:
            kind = entry.kind
            if mapping:
                kind |= entry.flags & GTF_sub_page
            passed_on = self.version == 2 and kind == GTF_transitive and not mapping
            if kind != GTF_permit_access and not passed_on:
                raise GrantRefused(GNTST_general_error, f"flags {entry.flags:#x} grant nothing")
            if entry.domid != domid:
                raise GrantRefused(GNTST_general_error, f"for domain {entry.domid}", E.ACCES)
        if write and entry.flags & GTF_readonly:
            raise GrantRefused(GNTST_general_error, "the grant is read-only", E.ACCES)

    @staticmethod
    def _refuse_transitive(gref: int, entry: Entry) -> NoReturn:
        """Pass on what another domain granted: there is none that grants anything to this one."""
        if entry.trans_domid == DOMAIN_0:
            refuse_of_domain_0(entry.trans_gref)
        raise GrantRefused(
            GNTST_general_error, f"reference {gref} passes on a grant of domain {entry.trans_domid}"
        )

    def _extent(self, entry: Entry) -> Extent:
        """What an entry grants. Raises: GrantRefused(bad_page)."""
        if not self._frames.is_domains(entry.frame):
            raise GrantRefused(GNTST_bad_page, f"frame {entry.frame:#x} is not the domain's")
        if self.version == 2 and entry.flags & GTF_sub_page:
            return Extent(Mfn(entry.frame), entry.page_off & _START_MASK, entry.length)
        return Extent(Mfn(entry.frame), 0, PAGE_SIZE)

    def _extent_in_use(self, gref: int, status: int) -> Extent:
        """What an entry granted when its use began. Raises: GrantRefused(status)."""
        extent = self._active.extent(gref)
        if not self._frames.is_domains(extent.mfn):
            raise GrantRefused(status, f"the frame of reference {gref} is gone")
        return extent

    def _begin(
        self, gref: int, domid: int, extent: Extent, use: Use, *, first: bool, sub_page: bool
    ) -> None:
        """Count a use that was checked. Raises: GrantRefused, with nothing changed."""
        self._hold(extent.mfn, use)
        # COMMIT
        if self.on_use is not None:
            self.on_use("grant_map", GrantRef(gref), use.writes)
        if first:
            self._active.record(gref, domid, extent, sub_page=sub_page)
        self._active.pin(gref, use)
        self.entries.mark(gref, GTF_reading | GTF_writing if use.writes else GTF_reading)

    def _hold(self, mfn: Mfn, use: Use) -> None:
        """Keep a frame, and keep it from becoming a table while it can be written.

        Raises: GrantRefused(general_error) if it is a table.
        """
        held = 0
        try:
            for _ in range(use.ways):
                self._types.hold(mfn, writable=use.writes)
                held += 1
        except XenError as refused:
            for _ in range(held):
                self._types.let_go(mfn, writable=use.writes)
            raise GrantRefused(GNTST_general_error, str(refused), E.BUSY) from None

    def _let_go(self, mfn: Mfn, use: Use) -> None:
        for _ in range(use.ways):
            self._types.let_go(mfn, writable=use.writes)

    @property
    def held(self) -> Iterator[tuple[int, bool]]:
        """(mfn, writable) for each time that a frame is held (page_audit.py)."""
        for gref in self._in_use():
            mfn, (readers, writers) = self._active.mfn(gref), self._active.counts(gref)
            yield from [(mfn, False)] * readers + [(mfn, True)] * writers


def refuse_of_domain_0(gref: int) -> NoReturn:
    """What a guest gets that wants to use a grant of domain 0. Raises: GrantRefused, always."""
    if gref >= DOMAIN_0_ENTRIES:
        raise GrantRefused(GNTST_bad_gntref, f"domain 0 has no grant reference {gref}")
    raise GrantRefused(GNTST_general_error, "domain 0 grants nothing")
