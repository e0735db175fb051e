"""Build a PV domain: lay it out, write it into the machine memory, say how to start it.

The memory map is drawn in pv_layout.py. The memory is new, so all zero: nothing that stays zero is
written, and what the domain does not use is not touched. mfn = pfn + XEN_PAGES.

Source: public/xen.h (start_info, start-of-day memory layout), public/elfnote.h.
"""

from __future__ import annotations

import os
from array import array
from dataclasses import dataclass
from mmap import mmap
from typing import Final

from pyxen.abi.xen import (
    MAX_GUEST_CMDLINE,
    SIF_MOD_START_PFN,
    SIF_VIRT_P2M_4TOOLS,
    StartInfo,
    StartInfoConsoleDomU,
)
from pyxen.builder.failure import refuse
from pyxen.builder.hypercall_page import hypercall_page
from pyxen.builder.kernel import KernelImage
from pyxen.builder.page_tables import L4_TABLE, link_tables, maddr_of, map_pages, protect_pages
from pyxen.builder.pv_layout import PvLayout, Region, plan
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import PAGE_SHIFT, Mfn, Port

_MAGIC: Final = b"xen-3.0-x86_64"


@dataclass(frozen=True, slots=True)
class PvOptions:
    """What the caller decides: the frame and ports that the hypervisor made for this domain.

    flags: SIF_* for start_info.
    pages: how many the guest begins with, if fewer than the machine memory has (`maxmem=`).
    """

    shared_info_mfn: Mfn
    store_port: Port
    console_port: Port
    flags: int = SIF_VIRT_P2M_4TOOLS
    pages: int | None = None


@dataclass(frozen=True, slots=True)
class BuiltDomain:
    """How to start the first vCPU, and what the hypervisor has to know.

    entry, rsp, rsi: the first vCPU's registers; all others are zero. rsi is start_info.
    l4_mfn:          the top-level page table. It does not have the hypervisor's slots yet.
    page_tables:     (mfn, level) of every page table, the L4 first.
    regions:         the used frames, in the order of memory.
    """

    entry: int
    rsp: int
    rsi: int
    l4_mfn: Mfn
    page_tables: tuple[tuple[Mfn, int], ...]
    start_info_mfn: Mfn
    store_mfn: Mfn
    console_mfn: Mfn
    regions: tuple[Region, ...]


def build(
    memory: MachineMemory,
    kernel: KernelImage,
    ramdisk: bytes | mmap | None,
    cmdline: str,
    options: PvOptions,
) -> BuiltDomain:
    """Load a kernel into a new machine memory.

    Raises: UserError (exit code 3), having written nothing: memory too small, command line too
            long.
    """
    ramdisk_bytes = len(ramdisk) if ramdisk is not None else 0
    command = _encode_command_line(cmdline)
    pages = memory.guest_pages if options.pages is None else options.pages
    layout = plan(kernel, pages, ramdisk_bytes)
    # COMMIT
    _load_kernel(memory, kernel)
    if ramdisk is not None and ramdisk_bytes:
        _fill(memory, maddr_of(layout.ramdisk.first_pfn), memoryview(ramdisk))
    _write_p2m(memory, layout, pages)
    _write_page_tables(memory, kernel, layout)
    info = _start_info(kernel, layout, pages, ramdisk_bytes, command, options)
    memory.write(maddr_of(layout.start_info.first_pfn), info)
    tables = {**layout.initial_tables, **layout.p2m_tables}
    return BuiltDomain(
        entry=kernel.entry,
        rsp=layout.vaddr(layout.boot_stack.end_pfn),
        rsi=layout.vaddr(layout.start_info.first_pfn),
        l4_mfn=_mfn(tables[L4_TABLE]),
        page_tables=tuple((_mfn(pfn), level) for (level, _), pfn in tables.items()),
        start_info_mfn=_mfn(layout.start_info.first_pfn),
        store_mfn=_mfn(layout.xenstore.first_pfn),
        console_mfn=_mfn(layout.console.first_pfn),
        regions=layout.regions,
    )


def _mfn(pfn: int) -> Mfn:
    return Mfn(pfn + XEN_PAGES)


def _encode_command_line(text: str) -> bytes:
    line = os.fsencode(text)
    if len(line) >= MAX_GUEST_CMDLINE:
        raise refuse(
            f"the kernel's command line has {len(line)} bytes; Xen's limit is "
            f"{MAX_GUEST_CMDLINE - 1}",
            "shorten `extra=`, `root=` or `cmdline=` in the configuration",
        )
    if b"\0" in line:
        raise refuse("the kernel's command line contains a NUL byte")
    return line


def _load_kernel(memory: MachineMemory, kernel: KernelImage) -> None:
    """Copy the segments; what they have beyond their data stays zero."""
    image = memoryview(kernel.image)
    for segment in kernel.segments:
        gaddr = segment.paddr - kernel.paddr_offset
        data = image[segment.offset : segment.offset + segment.file_bytes]
        _fill(memory, maddr_of(0) + gaddr, data)
    if kernel.hypercall_page is not None:
        pfn = (kernel.hypercall_page - kernel.virt_base) >> PAGE_SHIFT
        memory.write(maddr_of(pfn), hypercall_page())


def _fill(memory: MachineMemory, maddr: int, data: memoryview) -> None:
    """Put bulk data into untouched memory: through the file, which saves a fault for every page.

    Nobody has to be told: no engine has run in this memory yet.
    """
    while data:
        done = os.pwrite(memory.fd, data, maddr)
        maddr += done
        data = data[done:]


def _write_p2m(memory: MachineMemory, layout: PvLayout, count: int) -> None:
    at = maddr_of(layout.p2m.first_pfn) >> 3
    memory.words[at : at + count] = memoryview(array("Q", range(XEN_PAGES, XEN_PAGES + count)))


def _write_page_tables(memory: MachineMemory, kernel: KernelImage, layout: PvLayout) -> None:
    tables = {**layout.initial_tables, **layout.p2m_tables}
    link_tables(memory, tables)
    mapped = (layout.mapping_end - layout.virt_base) >> PAGE_SHIFT
    map_pages(memory, tables, layout.virt_base, 0, mapped)
    protect_pages(memory, tables, layout.virt_base, layout.initial_tables.values())
    inside = [pfn for pfn in layout.p2m_tables.values() if pfn < mapped]
    protect_pages(memory, tables, layout.virt_base, inside)
    if kernel.init_p2m is not None:
        map_pages(memory, tables, kernel.init_p2m, layout.p2m.first_pfn, layout.p2m.pages)


def _start_info(
    kernel: KernelImage,
    layout: PvLayout,
    guest_pages: int,
    ramdisk_bytes: int,
    command_line: bytes,
    options: PvOptions,
) -> bytes:
    flags = options.flags
    mod_start = 0
    if ramdisk_bytes and kernel.mod_start_pfn:
        flags |= SIF_MOD_START_PFN
        mod_start = layout.ramdisk.first_pfn
    elif ramdisk_bytes:
        mod_start = layout.vaddr(layout.ramdisk.first_pfn)
    p2m, frames = layout.p2m, 0
    mfn_list = layout.vaddr(p2m.first_pfn)
    if kernel.init_p2m is not None:
        mfn_list = kernel.init_p2m
        frames = p2m.pages + len(layout.p2m_tables)
    console = StartInfoConsoleDomU(mfn=_mfn(layout.console.first_pfn), evtchn=options.console_port)
    return StartInfo(
        magic=_MAGIC,
        nr_pages=guest_pages,
        shared_info=options.shared_info_mfn << PAGE_SHIFT,
        flags=flags,
        store_mfn=_mfn(layout.xenstore.first_pfn),
        store_evtchn=options.store_port,
        console=console.pack(),
        pt_base=layout.vaddr(layout.page_tables.first_pfn),
        nr_pt_frames=layout.page_tables.pages,
        mfn_list=mfn_list,
        mod_start=mod_start,
        mod_len=ramdisk_bytes,
        cmd_line=command_line,
        first_p2m_pfn=p2m.first_pfn if frames else 0,
        nr_p2m_frames=frames,
    ).pack()
