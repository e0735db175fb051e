"""Where everything goes in a new PV domain. Pure arithmetic: nothing is written here.

Pseudo-physical memory, from low to high; what is in (brackets) depends on the kernel's notes:

    pfn 0             free (mapped)
    kernel            at the addresses its ELF file asks for; Linux: 16 MiB
    (ramdisk)         unless MOD_START_PFN
    (P2M list)        unless INIT_P2M
    start_info        1 page
    xenstore ring     1 page
    console ring      1 page
    page tables       L4 first, then L3s, L2s, L1s; mapped read-only
    boot stack        1 page
    free (mapped)     at least 512 KiB, up to the next 4 MiB boundary of the virtual address
    ----------------- end of the initial mapping, which starts at VIRT_BASE
    (ramdisk)         if MOD_START_PFN: the kernel gets its pfn
    (P2M list)        if INIT_P2M: mapped there, its page tables behind it
    free

In a domain that is too small for that, the ramdisk goes below the kernel (above the ISA range,
which Linux treats as reserved) and the P2M list to the end of the mapping, its tables read-only.

Source: public/xen.h, "Start-of-day memory layout".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pyxen.builder.failure import refuse
from pyxen.builder.kernel import KernelImage
from pyxen.builder.page_tables import Table, count_tables, tables_for
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import PAGE_SHIFT, PAGE_SIZE, Pfn

_MAPPING_ALIGN_BYTES: Final = 4 << 20
_MAPPING_SPARE_PAGES: Final = (512 << 10) >> PAGE_SHIFT
_MIB_PAGES: Final = 1 << (20 - PAGE_SHIFT)
_ISA_END_PFN: Final = (1 << 20) >> PAGE_SHIFT


@dataclass(frozen=True, slots=True)
class Region:
    """A used range of pseudo-physical frames."""

    name: str
    first_pfn: Pfn
    pages: int

    @property
    def end_pfn(self) -> Pfn:
        """The first pfn behind it."""
        return Pfn(self.first_pfn + self.pages)


@dataclass(frozen=True, slots=True)
class PvLayout:
    """The regions of a domain, its mapping and the frames of its page tables.

    mapping_end:    virtual address behind the initial mapping (which starts at virt_base).
    initial_tables: the tables of the initial mapping, which start_info counts.
    p2m_tables:     further tables, for a P2M list at INIT_P2M.
    """

    virt_base: int
    kernel: Region
    ramdisk: Region
    p2m: Region
    start_info: Region
    xenstore: Region
    console: Region
    page_tables: Region
    boot_stack: Region
    mapping_end: int
    initial_tables: dict[Table, Pfn]
    p2m_tables: dict[Table, Pfn]
    end_pfn: Pfn

    def vaddr(self, pfn: int) -> int:
        """Where the initial mapping shows a frame."""
        return self.virt_base + (pfn << PAGE_SHIFT)

    @property
    def regions(self) -> tuple[Region, ...]:
        """What is used, in the order of memory."""
        parts = [
            self.kernel,
            self.ramdisk,
            self.p2m,
            self.start_info,
            self.xenstore,
            self.console,
            self.page_tables,
            self.boot_stack,
        ]
        if self.p2m_tables:
            first = min(self.p2m_tables.values())
            parts.append(Region("p2m page tables", first, len(self.p2m_tables)))
        return tuple(sorted((r for r in parts if r.pages), key=lambda r: r.first_pfn))


class _Allocator:
    """Hands out frames upwards."""

    def __init__(self, pfn: int) -> None:
        self.pfn = pfn

    def take(self, name: str, pages: int) -> Region:
        region = Region(name, Pfn(self.pfn), pages)
        self.pfn += pages
        return region


def plan(kernel: KernelImage, guest_pages: int, ramdisk_bytes: int) -> PvLayout:
    """Lay out a domain. Raises UserError (exit code 3) if the memory is too small."""
    ramdisk_pages = pages_of(ramdisk_bytes)
    p2m_pages = pages_of(guest_pages * 8)
    first = kernel.start_gaddr >> PAGE_SHIFT
    kernel_region = Region("kernel", Pfn(first), pages_of(kernel.end_gaddr) - first)
    # Before anything is counted page by page: a hostile kernel may claim any size.
    least: int = kernel_region.end_pfn
    if least >= guest_pages or max(ramdisk_pages, p2m_pages) >= guest_pages:
        raise _too_small(guest_pages, least, kernel_region, ramdisk_pages, p2m_pages, 0)

    alloc = _Allocator(kernel_region.end_pfn)
    mapped_ramdisk = alloc.take("ramdisk", 0 if kernel.mod_start_pfn else ramdisk_pages)
    mapped_p2m = alloc.take("p2m", p2m_pages if kernel.init_p2m is None else 0)
    start_info = alloc.take("start_info", 1)
    xenstore = alloc.take("xenstore ring", 1)
    console = alloc.take("console ring", 1)
    mapping_end, table_pages = _size_mapping(kernel, alloc.pfn)
    page_tables = alloc.take("page tables", table_pages)
    boot_stack = alloc.take("boot stack", 1)
    names = tables_for(kernel.virt_base, mapping_end)
    initial_tables = {t: Pfn(page_tables.first_pfn + i) for i, t in enumerate(names)}

    mapped_pages = (mapping_end - kernel.virt_base) >> PAGE_SHIFT
    rest = _Unmapped(kernel, ramdisk_pages, p2m_pages, initial_tables)
    top = max(mapped_pages, rest.put_ramdisk(mapped_pages))
    if rest.put_p2m(top) > guest_pages:
        # A small domain: the ramdisk goes below the kernel, the P2M list into the spare mapping.
        fits = rest.put_ramdisk(_ISA_END_PFN) <= first
        p2m_first = mapped_pages - rest.p2m_and_tables
        fits &= p2m_first >= boot_stack.end_pfn + _MAPPING_SPARE_PAGES
        if not fits or rest.put_p2m(p2m_first) > guest_pages:
            least = mapped_pages + rest.ramdisk.pages + rest.p2m_and_tables
            tables = table_pages + len(rest.p2m_tables)
            raise _too_small(guest_pages, least, kernel_region, ramdisk_pages, p2m_pages, tables)
    return PvLayout(
        virt_base=kernel.virt_base,
        kernel=kernel_region,
        ramdisk=rest.ramdisk if kernel.mod_start_pfn else mapped_ramdisk,
        p2m=mapped_p2m if kernel.init_p2m is None else rest.p2m,
        start_info=start_info,
        xenstore=xenstore,
        console=console,
        page_tables=page_tables,
        boot_stack=boot_stack,
        mapping_end=mapping_end,
        initial_tables=initial_tables,
        p2m_tables=rest.p2m_tables,
        end_pfn=Pfn(max(mapped_pages, rest.ramdisk.end_pfn, rest.p2m_end_pfn)),
    )


class _Unmapped:
    """What the kernel is only told the frames of: a ramdisk with MOD_START_PFN, the P2M list with
    INIT_P2M and its tables. Nothing of that for kernels without these notes.
    """

    def __init__(
        self, kernel: KernelImage, ramdisk_pages: int, p2m_pages: int, initial: dict[Table, Pfn]
    ) -> None:
        self._kernel = kernel
        self._ramdisk_pages = ramdisk_pages if kernel.mod_start_pfn else 0
        self._p2m_pages = 0 if kernel.init_p2m is None else p2m_pages
        self._initial = initial
        self.p2m_tables: dict[Table, Pfn] = {}
        self.p2m_end_pfn = 0

    @property
    def p2m_and_tables(self) -> int:
        """Pages of the P2M list and its tables."""
        return self._p2m_pages + len(self.p2m_tables)

    def put_ramdisk(self, first_pfn: int) -> int:
        """Put the ramdisk there; returns the frame behind it."""
        alloc = _Allocator(first_pfn)
        self.ramdisk = alloc.take("ramdisk", self._ramdisk_pages)
        return alloc.pfn

    def put_p2m(self, first_pfn: int) -> int:
        """Put the P2M list there, its tables behind it; returns the frame behind them."""
        alloc = _Allocator(first_pfn)
        self.p2m = alloc.take("p2m", self._p2m_pages)
        if self._kernel.init_p2m is not None:
            self.p2m_tables = _p2m_tables(
                self._kernel, self._kernel.init_p2m, self._p2m_pages, self._initial, alloc
            )
        self.p2m_end_pfn = alloc.pfn
        return alloc.pfn


def pages_of(length_bytes: int) -> int:
    """Pages that hold so many bytes."""
    return (length_bytes + PAGE_SIZE - 1) >> PAGE_SHIFT


def _size_mapping(kernel: KernelImage, used_pages: int) -> tuple[int, int]:
    """(end of the initial mapping, pages of its tables): the tables have to fit into it too."""
    tables = 0
    while True:
        needed = used_pages + tables + 1 + _MAPPING_SPARE_PAGES
        end = kernel.virt_base + (needed << PAGE_SHIFT)
        end = -(-end // _MAPPING_ALIGN_BYTES) * _MAPPING_ALIGN_BYTES
        if not is_guest_vaddr(kernel.virt_base, end - kernel.virt_base):
            raise refuse(
                f"{kernel.name}: the initial mapping of {needed // _MIB_PAGES} MiB at VIRT_BASE "
                f"{kernel.virt_base:#x} leaves the guest's address space",
                "use a smaller ramdisk",
            )
        wanted = count_tables(kernel.virt_base, end)
        if wanted <= tables:
            return end, wanted
        tables = wanted


def _p2m_tables(
    kernel: KernelImage,
    vaddr: int,
    p2m_pages: int,
    initial: dict[Table, Pfn],
    alloc: _Allocator,
) -> dict[Table, Pfn]:
    """Frames for the tables that map the P2M list at `vaddr`, behind the list."""
    length = p2m_pages << PAGE_SHIFT
    if vaddr + length > kernel.virt_base or not is_guest_vaddr(vaddr, length):
        raise refuse(
            f"{kernel.name}: a P2M list of {length >> 10} KiB has no room at INIT_P2M {vaddr:#x}",
            "give the domain less memory",
        )
    names = list(tables_for(vaddr, vaddr + length, initial))
    region = alloc.take("p2m page tables", len(names))
    return {table: Pfn(region.first_pfn + i) for i, table in enumerate(names)}


def _too_small(
    guest_pages: int, needed: int, kernel: Region, ramdisk_pages: int, p2m_pages: int, tables: int
) -> Exception:
    def kib(pages: int) -> str:
        return f"{pages / _MIB_PAGES:.1f} MiB"

    parts = [f"kernel {kib(kernel.pages)} from {kib(kernel.first_pfn)} on"]
    if ramdisk_pages:
        parts.append(f"ramdisk {kib(ramdisk_pages)}")
    parts.append(f"p2m {kib(p2m_pages)}")
    if tables:
        parts.append(f"page tables {kib(tables)}")
    least = needed // _MIB_PAGES + 1
    return refuse(
        f"{guest_pages // _MIB_PAGES} MiB of memory are too small for this domain: it needs at "
        f"least {least} MiB to be loaded: {', '.join(parts)}",
        f"set `memory=` well above {least}: the guest needs room to run as well",
    )
