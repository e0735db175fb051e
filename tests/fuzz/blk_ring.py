"""A hostile front end for the block back end: anything in rings, lists of segments, and grants.

Each subject is a device on a real file and the real grant table. It gets batches of requests, good
and bad, and what comes of them is compared with blk_model.py. After each batch:

    every request that was taken is answered once, with the status that the model says
    a batch of one moved exactly its data; nothing else ever changes the image's length
    no page that was not granted for writing has changed, and the engine heard of those that have
    when the device is closed, no grant is in use, and page types are in order
"""

from __future__ import annotations

import random
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from pyxen.abi.grant_table import GTF_permit_access, GTF_readonly
from pyxen.abi.io.blkif import (
    BLKIF_OP_READ,
    BLKIF_RSP_ERROR,
    BLKIF_RSP_OKAY,
)
from pyxen.backend.blk.device import BlockDevice, RingSettings
from pyxen.backend.blk.storage.raw import RawStorage, open_raw
from pyxen.backend.blk.storage.workers import Completions, Workers
from pyxen.hypervisor.grant_entries import Entry
from pyxen.hypervisor.page_audit import audit
from pyxen.memory.machine import XEN_PAGES
from pyxen.types import PAGE_SIZE, U32

from ..unit.backend.blk.front_end import REQ_PROD, Answer, FrontRing
from ..unit.hypervisor.pv_guest import L1, L2, L4, PvGuest
from .blk_model import FEW_USES, Expected, Model
from .campaign import Failed, Totals, numbers

IMAGE_BYTES = 128 * PAGE_SIZE
BATCHES = 60
DATA_PFN, DATA_PAGES = 512, 48
RING_PFN, RING_GREF = 256, 8
DATA_GREF = 64
GREFS = 80
FORBIDDEN_PFN, FORBIDDEN_PAGES = 700, 8


class Front:
    """A device under attack."""

    def __init__(self, seed: str, folder: Path, workers: Workers) -> None:
        r = self.random = random.Random(seed)
        self.guest = PvGuest()
        self.workers = workers
        self.image = folder / "image"
        self.image.write_bytes(r.randbytes(IMAGE_BYTES))
        self.is_32 = r.random() < 0.4
        self.persistent = r.random() < 0.5
        read_only = r.random() < 0.15
        self.storage: RawStorage = open_raw(self.image, workers, read_only=read_only)
        self.model = Model(
            self.guest.domain, IMAGE_BYTES, 512, is_32=self.is_32, read_only=read_only
        )
        self.pages = r.choice((1, 1, 2, 8))
        self.at = r.choice((0, U32 - 5, r.getrandbits(32)))
        self.reports: list[str] = []
        self.statuses: Counter[str] = Counter()
        for n in range(FORBIDDEN_PAGES):
            self.fill(FORBIDDEN_PFN + n)
        for n in range(DATA_PAGES):
            self.fill(DATA_PFN + n)
        self.good = DATA_GREF + GREFS
        """A reference that always grants a page of data for writing."""
        for n in range(GREFS):
            self.change_grant(DATA_GREF + n)
        good = Entry(GTF_permit_access, 0, XEN_PAGES + DATA_PFN)
        self.guest.domain.grants.entries.write(self.good, good)
        self.attach()

    def attach(self) -> None:
        """A new device on a new ring."""
        pfns = [RING_PFN + 2 * n for n in range(self.pages)]
        grefs = list(range(RING_GREF, RING_GREF + self.pages))
        entries = self.guest.domain.grants.entries
        for gref, pfn in zip(grefs, pfns, strict=True):
            entries.write(gref, Entry(GTF_permit_access, 0, XEN_PAGES + pfn))
        self.ring = FrontRing(self.guest.memory, pfns, self.is_32, self.at)
        settings = RingSettings(
            [grefs], "x86_32-abi" if self.is_32 else "x86_64-abi", self.persistent
        )
        self.device = BlockDevice(
            self.guest.memory,
            self.guest.domain.grants,
            self.storage,
            settings,
            [lambda: None],
            self.reports.append,
            self.workers.completions.post if self.random.random() < 0.7 else None,
        )

    # --- what a guest may do ------------------------------------------------------------------

    def fill(self, pfn: int) -> None:
        at = XEN_PAGES + pfn << 12
        self.guest.memory.bytes[at : at + PAGE_SIZE] = self.random.randbytes(PAGE_SIZE)

    def change_grant(self, gref: int) -> None:
        """Mostly a page of data; else one of those that may not be written, or nonsense."""
        r = self.random
        frame = XEN_PAGES + DATA_PFN + r.randrange(DATA_PAGES)
        flags, domid = GTF_permit_access, 0
        dice = r.random()
        if dice < 0.06:
            frame = XEN_PAGES + FORBIDDEN_PFN + r.randrange(FORBIDDEN_PAGES)
            flags |= GTF_readonly
        elif dice < 0.09:
            frame = XEN_PAGES + FORBIDDEN_PFN + r.randrange(FORBIDDEN_PAGES)
            flags, domid = r.choice(((0, 0), (GTF_permit_access, 7), (2, 0)))
        elif dice < 0.12:
            frame = r.choice((L1, L2, L4, 5, 0x900, 0x7FFF_FFFF, r.getrandbits(32)))
        if gref not in self.guest.domain.grants.uses:
            self.guest.domain.grants.entries.write(gref, Entry(flags, domid, frame))

    def gref(self) -> int:
        r = self.random
        if r.random() < 0.01:
            return r.choice((0, 511, 512, r.getrandbits(32)))
        return DATA_GREF + r.randrange(GREFS)

    def segment(self) -> bytes:
        r = self.random
        first = r.choice((0, 0, 0, r.randrange(8)))
        last = r.choice((7, 7, 7, r.randrange(first, 8)))
        if r.random() < 0.01:
            first, last = r.randrange(256), r.randrange(256)
        return self.gref().to_bytes(4, "little") + bytes((first, last)) + r.randbytes(2)

    def sector_of_a_page(self) -> bytes:
        """A segment with nothing wrong, short enough for long lists."""
        sector = self.random.randrange(8)
        gref = DATA_GREF + self.random.randrange(GREFS)
        if self.model.frame(gref, write=True) is None:
            gref = self.good
        return gref.to_bytes(4, "little") + bytes((sector, sector, 0, 0))

    def sector(self) -> int:
        r = self.random
        if r.random() < 0.05:
            return r.choice((IMAGE_BYTES // 512, r.getrandbits(64), (1 << 64) - 1))
        return r.randrange(IMAGE_BYTES // 512)

    def entry(self) -> bytes:
        """One ring entry: header, and what belongs to its operation."""
        r = self.random
        total, pad = (108, b"") if self.is_32 else (112, bytes(4))
        if r.random() < 0.03:
            return r.randbytes(total)
        id_, sector = r.randbytes(8), self.sector().to_bytes(8, "little")
        operation = r.choice((0, 0, 0, 1, 1, 1, 2, 3, 5, 6, 6, 6, r.randrange(256)))
        byte, half = r.choice((0, 1, 2, 4, 11, 12)), r.getrandbits(16)
        if operation == 6:
            byte, half = r.choice((0, 1, 0, 1, r.randrange(8))), r.choice((1, 12, 32, 256, 257, 0))
            gref = self.indirect_list()
            rest = bytes(2) + r.randbytes(2) + gref.to_bytes(4, "little") + r.randbytes(28)
        elif operation == 5:
            rest = r.choice((r.randrange(64), r.getrandbits(64))).to_bytes(8, "little")
        else:
            rest = b"".join(self.segment() for _ in range(11))
        head = bytes((operation, byte)) + half.to_bytes(2, "little")
        return (head + pad + id_ + sector + rest).ljust(total, b"\0")[:total]

    def indirect_list(self) -> int:
        """A reference to a page with segments, as a rule."""
        gref = self.gref()
        frame = self.model.frame(gref, write=True)
        if frame is not None and self.random.random() < 0.9:
            clean = self.random.random() < 0.5
            make = self.sector_of_a_page if clean else self.segment
            segments = b"".join(make() for _ in range(260))
            self.guest.memory.bytes[frame << 12 : (frame << 12) + len(segments)] = segments
        return gref

    # --- batches --------------------------------------------------------------------------------

    def batch(self) -> int:
        """Some requests and what must hold for them; how many. Raises: Failed."""
        r = self.random
        for _ in range(r.choice((0, 0, 3))):
            self.change_grant(DATA_GREF + r.randrange(GREFS))
        if r.random() < 0.04:
            self.break_ring()
            return 1
        alone = r.random() < 0.4
        count = 1 if alone else r.randrange(1, self.ring.size + 1)
        entries = [self.entry() for _ in range(count)]
        self.model.kept = dict(self.device._pages._kept)
        # Lists of segments are data, too: a read before them may change them.
        expected = [self.model.expect(entry) for entry in entries]
        before = self.snapshot()
        self.guest.engine.code_changes.clear()
        for entry in entries:
            self.ring.put(entry)
        self.ring.publish()
        self.device.notified(0)
        self.settle()
        answers = self.check_answers(expected, alone=alone)
        self.statuses.update(str(answer.status) for answer in answers)
        if alone:
            self.check_data(expected[0], before)
        self.check_pages(before)
        return count

    def snapshot(self) -> tuple[bytes, bytes]:
        """The data pages, and the image."""
        at = XEN_PAGES + DATA_PFN << 12
        return self.guest.memory.read(at, DATA_PAGES * PAGE_SIZE), self.image.read_bytes()

    def settle(self) -> None:
        completions: Completions = self.workers.completions
        end = time.monotonic() + 60
        completions.drain()
        while self.device.in_flight or self.device._ready or self.device._turn_asked:
            if time.monotonic() > end:
                raise Failed(f"{self.device.in_flight} requests never end")
            completions.wait()

    def check_answers(self, expected: list[Expected], *, alone: bool) -> list[Answer]:
        taken = self.ring.answers()
        answers = Counter(taken)
        wanted = Counter((e.id, e.operation) for e in expected)
        got = Counter((a.id, a.operation) for a in answers.elements())
        if wanted != got:
            raise Failed(f"answers {got - wanted} too many, {wanted - got} missing")
        uses = Counter(gref for e in expected for gref in e.uses)
        for e in expected:
            status = {e.status}
            if any(uses[gref] > FEW_USES for gref in e.uses):
                status.add(BLKIF_RSP_ERROR)
            if e.is_indirect and not alone:  # what is read before may change its list
                status |= {BLKIF_RSP_OKAY, BLKIF_RSP_ERROR}
            if not any((e.id, e.operation, s) in answers for s in status):
                raise Failed(f"{e} is answered otherwise")
        return taken

    def check_data(self, e: Expected, before: tuple[bytes, bytes]) -> None:
        """After one request: it moved its data and no other."""
        pages, image = bytearray(before[0]), bytearray(before[1])
        start = XEN_PAGES + DATA_PFN << 12
        few = all(count <= FEW_USES for count in Counter(e.uses).values())
        if not few:
            return
        if e.parts is not None:
            offset = e.offset
            for maddr, nbytes in e.parts:
                if e.operation == BLKIF_OP_READ:
                    pages[maddr - start : maddr - start + nbytes] = image[offset : offset + nbytes]
                else:
                    image[offset : offset + nbytes] = self.guest.memory.read(maddr, nbytes)
                offset += nbytes
        elif e.status == BLKIF_RSP_OKAY and e.length:
            image[e.offset : e.offset + e.length] = bytes(e.length)
        after = self.snapshot()
        if after[0] != pages:
            raise Failed(f"memory is not what {e} makes of it")
        if after[1] != image:
            raise Failed(f"the image is not what {e} makes of it")

    def check_pages(self, before: tuple[bytes, bytes]) -> None:
        after = self.snapshot()
        if len(after[1]) != IMAGE_BYTES:
            raise Failed(f"the image is {len(after[1])} bytes long")
        told = {
            mfn
            for maddr, length in self.guest.engine.code_changes
            for mfn in range(maddr >> 12, (maddr + length - 1 >> 12) + 1)
        }
        for n in range(DATA_PAGES):
            part = slice(n * PAGE_SIZE, (n + 1) * PAGE_SIZE)
            if after[0][part] != before[0][part] and XEN_PAGES + DATA_PFN + n not in told:
                raise Failed(f"the engine was not told that data page {n} has changed")

    def break_ring(self) -> None:
        """An index that is not possible: the ring stops, and a new device begins anew."""
        r = self.random
        wrong = r.choice((self.ring.size + 1, U32, 1 << 31, r.randrange(self.ring.size + 1, U32)))
        self.ring.set(REQ_PROD, self.ring.prod + wrong)
        self.reports.clear()
        for _ in range(3):
            self.device.notified(0)
        if sum("is broken" in line for line in self.reports) != 1:
            raise Failed(f"a broken ring is reported as {self.reports}")
        self.device.close()
        self.check_closed()
        self.at = r.getrandbits(32)
        self.attach()

    def close_at_work(self) -> None:
        """Requests that the device is closed with."""
        for _ in range(self.random.randrange(self.ring.size)):
            self.ring.put(self.entry())
        self.ring.publish()
        self.device.notified(0)
        self.device.close()
        while self.device.in_flight:
            self.workers.completions.wait()
        self.check_closed()

    def check_closed(self) -> None:
        if self.guest.domain.grants.uses:
            raise Failed(f"still in use: {self.guest.domain.grants.uses}")
        wrong = audit(self.guest.domain)
        if wrong:
            raise Failed("; ".join(wrong[:5]))

    def forbidden(self) -> bytes:
        """What nobody may change: pages not granted for writing, page tables, the frames before."""
        memory = self.guest.memory
        return memory.read(XEN_PAGES + FORBIDDEN_PFN << 12, FORBIDDEN_PAGES << 12) + memory.read(
            XEN_PAGES << 12, 64 << 12
        )

    def close(self) -> None:
        self.device.close()
        self.storage.close()
        self.guest.close()


class BlkCampaign:
    """A seed and a number of seconds."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.totals = Totals()
        self._folder = TemporaryDirectory(prefix="pyxen-fuzz-")
        self._workers = Workers(Completions())

    def run(self, seconds: float, first: int = 0, only: bool = False) -> Totals:
        """Make devices until the time is over. Raises: Failed."""
        for number in numbers(seconds, first, only):
            self.domain(number)
        return self.totals

    def domain(self, number: int) -> None:
        """One device from its start to its end. Raises: Failed."""
        front = Front(f"{self.seed}/{number}", Path(self._folder.name), self._workers)
        again = f'make fuzz FUZZ="--campaign blk --seed {self.seed} --domain {number}"'
        before = front.forbidden()
        self.totals.domains += 1
        try:
            for _ in range(BATCHES):
                self.totals.operations += front.batch()
            front.close_at_work()
            if front.forbidden() != before:
                raise Failed("a page has changed that was not granted for writing")
        except Exception as error:
            raise Failed(f"device {number}: {error!r}\n{again}") from error
        finally:
            front.close()
            for status, count in front.statuses.items():
                self.totals.reasons[status] = self.totals.reasons.get(status, 0) + count

    def close(self) -> None:
        """End the workers."""
        self._workers.close()
        self._workers.completions.close()
        self._folder.cleanup()
