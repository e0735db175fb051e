"""The PV domain builder: what is where, what is mapped, and what start_info says."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from kernel_maker import TEXT, VIRT_BASE, elf, notes

from pyxen.abi import elfnote
from pyxen.abi.xen import SIF_MOD_START_PFN, SIF_VIRT_P2M_4TOOLS, StartInfo, StartInfoConsoleDomU
from pyxen.builder.hypercall_page import hypercall_page
from pyxen.builder.kernel import KernelImage, parse_kernel
from pyxen.builder.page_tables import count_tables, tables_for
from pyxen.builder.pv import BuiltDomain, PvOptions, build
from pyxen.errors import UserError
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import (
    PTE_ADDRESS,
    PTE_PRESENT,
    PTE_RW,
    PTE_USER,
    entry_maddr,
    translate,
)
from pyxen.types import Mfn, Port

OPTIONS = PvOptions(shared_info_mfn=Mfn(0x20), store_port=Port(1), console_port=Port(2))
RAMDISK = b"initramfs" * 5000
PAGES = 16 << 8  # 16 MiB


def kernel_with(changes: dict[int, int | str | bytes | None] | None = None) -> KernelImage:
    return parse_kernel(elf(notes(changes)), "test-kernel")


SMALL_KERNEL = {
    elfnote.XEN_ELFNOTE_INIT_P2M: None,
    elfnote.XEN_ELFNOTE_MOD_START_PFN: None,
    elfnote.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE + 0x10_3000,
}


@contextmanager
def machine(pages: int = PAGES) -> Iterator[MachineMemory]:
    memory = MachineMemory(pages)
    try:
        yield memory
    finally:
        memory.close()


class View:
    """Looks at a built domain through its own page tables, as the guest would."""

    def __init__(self, memory: MachineMemory, built: BuiltDomain) -> None:
        self.memory = memory
        self.built = built
        self.cr3 = built.l4_mfn << 12

    def read(self, vaddr: int, length: int) -> bytes:
        out = b""
        while length:
            maddr = translate(self.memory, self.cr3, vaddr)
            assert maddr is not None, hex(vaddr)
            step = min(length, 4096 - (vaddr & 4095))
            out += self.memory.read(maddr, step)
            vaddr, length = vaddr + step, length - step
        return out

    def mapped(self, vaddr: int) -> bool:
        return translate(self.memory, self.cr3, vaddr) is not None

    def writable(self, vaddr: int) -> bool:
        return translate(self.memory, self.cr3, vaddr, write=True) is not None

    @property
    def start_info(self) -> StartInfo:
        return StartInfo.unpack(self.read(self.built.rsi, StartInfo.SIZE))


def test_the_kernel_is_where_it_wants_to_be() -> None:
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(), None, "", OPTIONS))
        assert view.read(VIRT_BASE + 0x10_0000, len(TEXT)) == TEXT
        assert view.read(VIRT_BASE + 0x10_0000 + len(TEXT), 0x1000) == bytes(0x1000)
        assert view.built.entry == VIRT_BASE + 0x10_0010
        assert not view.mapped(0)


def test_start_info_of_a_modern_kernel() -> None:
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(), RAMDISK, "console=hvc0 ä", OPTIONS))
        info, built = view.start_info, view.built
        assert info.magic == b"xen-3.0-x86_64".ljust(32, b"\0")
        assert info.nr_pages == PAGES
        assert info.shared_info == 0x20000
        assert info.flags == SIF_MOD_START_PFN | SIF_VIRT_P2M_4TOOLS
        assert (info.store_mfn, info.store_evtchn) == (built.store_mfn, 1)
        console = StartInfoConsoleDomU.unpack(info.console)
        assert (console.mfn, console.evtchn) == (built.console_mfn, 2)
        assert info.mfn_list == 0x80_0000_0000
        assert info.mod_len == len(RAMDISK)
        assert info.cmd_line.rstrip(b"\0") == "console=hvc0 ä".encode()
        at = (info.mod_start + XEN_PAGES) << 12
        assert memory.read(at, len(RAMDISK)) == RAMDISK
        assert not view.mapped(VIRT_BASE + (info.mod_start << 12))
        p2m = next(r for r in built.regions if r.name == "p2m")
        assert info.first_p2m_pfn == p2m.first_pfn
        assert info.nr_p2m_frames == p2m.pages + 3
        assert translate(memory, view.cr3, info.pt_base) == view.cr3


def test_start_info_of_a_small_kernel() -> None:
    """Neither INIT_P2M nor MOD_START_PFN: all of it lies in the initial mapping."""
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(SMALL_KERNEL), RAMDISK, "", OPTIONS))
        info = view.start_info
        assert info.flags == SIF_VIRT_P2M_4TOOLS
        assert view.read(info.mod_start, info.mod_len) == RAMDISK
        assert (info.first_p2m_pfn, info.nr_p2m_frames) == (0, 0)
        first = view.read(info.mfn_list, 24)
        assert first == b"".join((XEN_PAGES + n).to_bytes(8, "little") for n in range(3))
        assert view.read(VIRT_BASE + 0x10_3000, 4096) == hypercall_page()


def test_the_whole_p2m_is_mapped_at_init_p2m() -> None:
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(), None, "", OPTIONS))
        words = memoryview(view.read(0x80_0000_0000, PAGES * 8)).cast("Q")
        assert list(words) == list(range(XEN_PAGES, XEN_PAGES + PAGES))
        assert view.writable(0x80_0000_0000)
        assert not view.mapped(0x80_0000_0000 + PAGES * 8)


def test_page_tables_are_read_only_and_all_else_is_writable() -> None:
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(), RAMDISK, "", OPTIONS))
        info = view.start_info
        tables = {mfn - XEN_PAGES for mfn, _ in view.built.page_tables[: info.nr_pt_frames]}
        assert min(tables) == (info.pt_base - VIRT_BASE) >> 12
        vaddr, end = VIRT_BASE, VIRT_BASE + (4 << 20)
        while vaddr < end:
            assert view.mapped(vaddr)
            assert view.writable(vaddr) == ((vaddr - VIRT_BASE) >> 12 not in tables)
            vaddr += 4096
        assert not view.mapped(end)


def test_page_tables_are_named_with_their_levels() -> None:
    """Every table is found by walking down from the L4, at the level that was reported."""
    with machine() as memory:
        built = build(memory, kernel_with(), RAMDISK, "", OPTIONS)
        found = {}

        def walk(mfn: int, level: int) -> None:
            found[mfn] = level
            for slot in range(512):
                entry = memory.words[(mfn << 9) + slot]
                if entry and level > 1:
                    assert entry & PTE_RW and entry & PTE_PRESENT and entry & PTE_USER
                    walk((entry & PTE_ADDRESS) >> 12, level - 1)

        walk(built.l4_mfn, 4)
        assert found == dict(built.page_tables)
        assert built.page_tables[0] == (built.l4_mfn, 4)
        # No user bit at the lowest level: the guest kernel's pages are the kernel's.
        leaf = entry_maddr(memory, built.l4_mfn << 12, VIRT_BASE)
        assert leaf is not None
        assert not memory.read_u64(leaf) & PTE_USER


def test_the_stack_and_the_spare_room_behind_it() -> None:
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(), None, "", OPTIONS))
        stack = next(r for r in view.built.regions if r.name == "boot stack")
        assert view.built.rsp == VIRT_BASE + (stack.end_pfn << 12)
        assert view.writable(view.built.rsp - 8)
        assert view.writable(view.built.rsp + (512 << 10) - 8)


def test_regions_do_not_overlap_and_nothing_else_is_touched() -> None:
    for changes in (None, SMALL_KERNEL):
        with machine() as memory:
            built = build(memory, kernel_with(changes), RAMDISK, "x", OPTIONS)
            end = 0
            used = set()
            for region in built.regions:
                assert region.first_pfn >= end
                end = region.end_pfn
                used.update(range(region.first_pfn, end))
            empty = bytes(4096)
            for pfn in range(PAGES):
                if pfn not in used:
                    assert memory.page(pfn + XEN_PAGES) == empty, hex(pfn)
            for mfn in (built.store_mfn, built.console_mfn):
                assert memory.page(mfn) == empty


def test_a_kernel_at_virtual_address_zero() -> None:
    """Mini-OS lives there; and VIRT_BASE need not be at a multiple of 2 MiB."""
    for base in (0, 0x5000):
        changes: dict[int, int | str | bytes | None] = {
            **SMALL_KERNEL,
            elfnote.XEN_ELFNOTE_VIRT_BASE: base,
            elfnote.XEN_ELFNOTE_ENTRY: base + 0x10_0000,
            elfnote.XEN_ELFNOTE_HYPERCALL_PAGE: base + 0x10_1000,
        }
        with machine() as memory:
            view = View(memory, build(memory, kernel_with(changes), RAMDISK, "", OPTIONS))
            assert view.read(base + 0x10_0000, 64) == TEXT[:64]
            assert view.read(view.start_info.mod_start, len(RAMDISK)) == RAMDISK


def test_a_p2m_that_shares_tables_with_the_initial_mapping() -> None:
    changes: dict[int, int | str | bytes | None] = {
        elfnote.XEN_ELFNOTE_INIT_P2M: VIRT_BASE - (1 << 20)
    }
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(changes), None, "", OPTIONS))
        words = memoryview(view.read(VIRT_BASE - (1 << 20), PAGES * 8)).cast("Q")
        assert words[PAGES - 1] == XEN_PAGES + PAGES - 1
        assert view.read(VIRT_BASE + 0x10_0000, 16) == TEXT[:16]


def test_a_ramdisk_larger_than_the_first_guess_of_tables() -> None:
    ramdisk = bytes(9 << 20) + b"end"
    with machine(64 << 8) as memory:
        view = View(memory, build(memory, kernel_with(SMALL_KERNEL), ramdisk, "", OPTIONS))
        info = view.start_info
        assert view.read(info.mod_start + (9 << 20), 3) == b"end"


@pytest.mark.parametrize("changes", [None, SMALL_KERNEL])
def test_too_little_memory_names_the_sum(changes: dict[int, int | str | bytes | None]) -> None:
    for mib in (1, 2, 3):
        with machine(mib << 8) as memory:
            with pytest.raises(UserError) as caught:
                build(memory, kernel_with(changes), bytes(2 << 20), "", OPTIONS)
            assert caught.value.exit_code == 3
            assert f"{mib} MiB of memory" in caught.value.message
            assert "ramdisk 2.0 MiB" in caught.value.message
            assert "at least" in caught.value.message
            assert "memory=" in caught.value.hint
            assert memory.read(XEN_PAGES << 12, mib << 20) == bytes(mib << 20)


def test_every_memory_size_either_works_or_is_refused() -> None:
    """The smallest size that works is the one that the refusals ask for, or one less."""
    kernel = kernel_with()
    smallest = 0
    for pages in range(900, 1400, 7):
        with machine(pages) as memory:
            try:
                build(memory, kernel, RAMDISK, "", OPTIONS)
            except UserError:
                assert smallest == 0
            else:
                smallest = smallest or pages
    assert smallest


def test_a_kernel_that_claims_an_absurd_size() -> None:
    kernel = parse_kernel(elf(notes(), segments=[(0x10_0000, TEXT, 1 << 30)]), "huge")
    with machine() as memory, pytest.raises(UserError, match="too small"):
        build(memory, kernel, None, "", OPTIONS)


def test_a_guest_that_begins_with_less_than_its_maximum() -> None:
    options = PvOptions(Mfn(0x20), Port(1), Port(2), pages=PAGES // 2)
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(), RAMDISK, "", options))
        assert view.start_info.nr_pages == PAGES // 2
        assert view.mapped(0x80_0000_0000 + PAGES * 4 - 8)
        assert not view.mapped(0x80_0000_0000 + PAGES * 4)


def test_the_command_line_limit() -> None:
    with machine() as memory:
        view = View(memory, build(memory, kernel_with(), None, "a" * 1023, OPTIONS))
        assert view.start_info.cmd_line == b"a" * 1023 + b"\0"
    with machine() as memory:
        with pytest.raises(UserError, match="1024 bytes; Xen's limit is 1023") as caught:
            build(memory, kernel_with(), None, "a" * 1024, OPTIONS)
        assert caught.value.exit_code == 3
        with pytest.raises(UserError, match="NUL"):
            build(memory, kernel_with(), None, "a\0b", OPTIONS)


def test_the_hypercall_page() -> None:
    """As public/xen.h has it: slot n at 32 n; iret's keeps RAX and does not come back."""
    page = hypercall_page()
    assert len(page) == 4096
    assert page[32 * 29 : 32 * 29 + 14].hex() == "514153b81d0000000f05415b59c3"
    assert page[32 * 23 : 32 * 23 + 11].hex() == "51415350b8170000000f05"


def test_count_tables_agrees_with_the_tables() -> None:
    for start, end in (
        (VIRT_BASE, VIRT_BASE + (4 << 20)),
        (0, 4096),
        (0x3FFF_F000, 0x4000_1000),
        ((1 << 39) - 4096, (1 << 39) + (5 << 30)),
        (VIRT_BASE, 1 << 64),
    ):
        assert count_tables(start, end) == len(list(tables_for(start, end)))
