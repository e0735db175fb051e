"""A kernel file, opened: whatever it was packed in, what it says to Xen, where it wants to be.

Every refusal says what is wrong with the kernel and what to do, before any domain exists.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pyxen.abi import elfnote as n
from pyxen.builder import bzimage
from pyxen.builder.elf import EM_386, EM_X86_64, PT_LOAD, Elf, Segment
from pyxen.builder.failure import refuse
from pyxen.builder.notes import FEATURE_BITS, XenNotes, read_notes
from pyxen.builder.payload import decompress, recognise
from pyxen.memory.pagetable import is_guest_vaddr
from pyxen.types import PAGE_MASK

_MAX_LAYERS: Final = 3
_MAX_FILE_BYTES: Final = 1 << 30


@dataclass(frozen=True, slots=True)
class KernelImage:
    """A kernel that can be started as a PV guest; everything is checked.

    name:           the file, for messages.
    format:         what the file was, as `bzImage, lz4` or `ELF`.
    image:          the whole ELF file; `segments` (PT_LOAD) point into it.
    notes:          what the kernel says to Xen.
    entry:          RIP of the first instruction.
    virt_base:      where pseudo-physical address 0 is mapped.
    paddr_offset:   to subtract from a segment's paddr for its pseudo-physical address.
    start_gaddr, end_gaddr: the pseudo-physical range of all segments, memory sizes included.
    hypercall_page: virtual address of the page to fill, or None.
    init_p2m:       virtual address the kernel wants the P2M list at, or None.
    mod_start_pfn:  whether it takes a ramdisk that is not mapped.
    """

    name: str
    format: str
    image: bytes
    segments: tuple[Segment, ...]
    notes: XenNotes
    entry: int
    virt_base: int
    paddr_offset: int
    start_gaddr: int
    end_gaddr: int
    hypercall_page: int | None
    init_p2m: int | None
    mod_start_pfn: bool

    def describe(self) -> str:
        """One line for `xl -v create` and crash reports."""
        text = self.notes.strings
        words = [text.get(n.XEN_ELFNOTE_GUEST_OS, ""), text.get(n.XEN_ELFNOTE_GUEST_VERSION, "")]
        return f"{self.name}: {self.format}, guest OS {' '.join(w for w in words if w) or '?'}"


def load_kernel(path: str | os.PathLike[str]) -> KernelImage:
    """Open a kernel file. Raises UserError (exit code 3) if it cannot be started as a PV guest."""
    name = os.fspath(path)
    return parse_kernel(read_file(Path(path), "kernel"), name)


def read_file(path: Path, what: str) -> bytes:
    """A whole file that the user named. Raises UserError (exit code 3). `what` is for messages."""
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise refuse(f"the {what} {path} is not a regular file")
            if status.st_size > _MAX_FILE_BYTES:
                raise refuse(f"the {what} {path} is larger than {_MAX_FILE_BYTES >> 20} MiB")
            return file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        raise refuse(
            f"the {what} {path} does not exist", f"check the `{what}=` line of the configuration"
        ) from None
    except OSError as e:
        raise refuse(f"the {what} {path} cannot be read: {e.strerror}") from None


def parse_kernel(data: bytes, name: str) -> KernelImage:
    """A kernel from the bytes of its file. Raises UserError (exit code 3)."""
    image, formats = unpack(data, name)
    elf = Elf(image, name)
    if elf.machine not in (EM_386, EM_X86_64):
        raise refuse(f"{name}: a kernel for {elf.machine_name}", "use a kernel built for x86-64")
    notes = read_notes(elf)
    _check_guest_type(elf, notes)
    _check_versions(name, notes)
    _check_features(name, notes)
    return _place(elf, notes, formats)


def unpack(data: bytes, name: str) -> tuple[bytes, str]:
    """Peel off bzImage and compression layers: (the ELF file, the formats met)."""
    formats: list[str] = []
    for _ in range(_MAX_LAYERS + 1):
        if data.startswith(b"\x7fELF"):
            return data, ", ".join(formats or ["ELF"])
        if bzimage.is_bzimage(data):
            formats.append("bzImage")
            data = _unpack_payload(bzimage.payload(data, name), name, formats)
        elif compression := recognise(data):
            formats.append(compression.name)
            data = decompress(data, compression, name)
        else:
            break
    raise _unknown_format(data, name, formats)


def _unpack_payload(packed: memoryview, name: str, formats: list[str]) -> bytes:
    """The kernel inside of a bzImage, compressed or (CONFIG_KERNEL_UNCOMPRESSED) not."""
    compression = recognise(packed)
    if compression is None:
        if bytes(packed[:4]) == b"\x7fELF":
            return bytes(packed)
        raise refuse(
            f"{name}: a bzImage with a payload of unknown format "
            f"(it starts with {bytes(packed[:8]).hex(' ')})",
            "known are gzip, bzip2, xz, lzma, lzo, lz4 and zstd",
        )
    formats.append(compression.name)
    return decompress(packed, compression, name)


def _unknown_format(data: bytes, name: str, formats: list[str]) -> Exception:
    inside = f" inside of {', '.join(formats)}" if formats else ""
    if not data:
        return refuse(f"{name}: the file is empty{inside}")
    if data[:2] == b"MZ":
        hint = "an EFI program: a unified kernel image or zboot file holds the kernel inside"
    elif data[:4] == b"\x7fELF"[: len(data)]:
        hint = "the file is truncated"
    else:
        hint = "give a vmlinux or vmlinuz (bzImage) file, or another ELF kernel"
    return refuse(f"{name}: not a kernel{inside} (it starts with {data[:8].hex(' ')})", hint)


def _check_guest_type(elf: Elf, notes: XenNotes) -> None:
    name = elf.name
    if notes.empty:
        raise refuse(
            f"{name}: the kernel has no Xen ELF notes",
            "was it built with CONFIG_XEN_PV? without notes it can only be a guest of "
            'type="hvm" with its own boot loader',
        )
    types = notes.guest_types()
    if elf.bits == 32 or elf.machine == EM_386:
        if types == ("pvh",):
            raise _pvh_only(name, notes)
        raise refuse(
            f"{name}: a 32-bit PV kernel (ELF for {elf.machine_name})",
            "only 64-bit PV kernels run here: use the x86-64 build",
        )
    if "pv" not in types:
        if types:
            raise _pvh_only(name, notes)
        raise refuse(
            f"{name}: the kernel has Xen ELF notes ({', '.join(notes.names)}), but none that a PV "
            "kernel has to have (XEN_VERSION)",
            "was it built with CONFIG_XEN_PV?",
        )


def _pvh_only(name: str, notes: XenNotes) -> Exception:
    return refuse(
        f"{name}: the Xen ELF note ENTRY is missing, so this is no PV kernel; its notes "
        f'({", ".join(notes.names)}) support type="pvh" only',
        "build it with CONFIG_XEN_PV (a distribution's generic or cloud kernel has it)",
    )


def _check_versions(name: str, notes: XenNotes) -> None:
    """The same two tests as Xen's, so that what starts here starts there."""
    loader = notes.strings.get(n.XEN_ELFNOTE_LOADER, "")
    guest_os = notes.strings.get(n.XEN_ELFNOTE_GUEST_OS, "")
    if not (loader.startswith("generic") or guest_os.startswith("linux")):
        raise refuse(
            f"{name}: Xen loads kernels whose note LOADER is 'generic' or whose GUEST_OS is "
            f"'linux'; this one has LOADER {loader!r} and GUEST_OS {guest_os!r}",
            "add the note LOADER with the string 'generic' to the kernel",
        )
    version = notes.strings.get(n.XEN_ELFNOTE_XEN_VERSION, "")
    if not version.startswith("xen-3.0"):
        found = f"is {version!r}" if version else "is missing"
        raise refuse(
            f"{name}: the Xen ELF note XEN_VERSION {found}; it has to be 'xen-3.0'",
            "that string names the interface, not the release: every Xen since 3.0 has it",
        )


def _check_features(name: str, notes: XenNotes) -> None:
    if notes.unknown_required:
        raise refuse(
            f"{name}: the kernel requires unknown Xen features: {', '.join(notes.unknown_required)}"
        )
    for feature, why in (
        ("dom0", "it can only run as domain 0"),
        ("auto_translated_physmap", "PV guests have no translated memory"),
        ("supervisor_mode_kernel", "no Xen for x86-64 offers that"),
    ):
        if notes.required >> FEATURE_BITS[feature] & 1:
            raise refuse(f"{name}: the kernel requires the Xen feature {feature}: {why}")


def _place(elf: Elf, notes: XenNotes, formats: str) -> KernelImage:
    """Work out the addresses. In pseudo-physical space segments lie at paddr - paddr_offset."""
    name = elf.name
    loads = tuple(s for s in elf.segments if s.type == PT_LOAD and s.memory_bytes)
    if not loads:
        raise refuse(f"{name}: the kernel has nothing to load (no PT_LOAD program header)")
    numbers = notes.numbers
    virt_base = numbers.get(n.XEN_ELFNOTE_VIRT_BASE, 0)
    offset = numbers.get(n.XEN_ELFNOTE_PADDR_OFFSET, 0)
    start = min(s.paddr for s in loads) - offset
    end = max(s.paddr + s.memory_bytes for s in loads) - offset
    entry = numbers.get(n.XEN_ELFNOTE_ENTRY, elf.entry)
    if virt_base & PAGE_MASK:
        raise refuse(f"{name}: VIRT_BASE {virt_base:#x} is not at a page boundary")
    if start < 0:
        raise refuse(f"{name}: a segment lies {-start:#x} bytes below PADDR_OFFSET {offset:#x}")
    if not is_guest_vaddr(virt_base, end):
        raise refuse(
            f"{name}: {end:#x} bytes at VIRT_BASE {virt_base:#x} leave the guest's address space"
        )
    if not virt_base + start <= entry < virt_base + end:
        raise refuse(
            f"{name}: the entry point {entry:#x} is outside of the kernel "
            f"({virt_base + start:#x} to {virt_base + end:#x})"
        )
    page = numbers.get(n.XEN_ELFNOTE_HYPERCALL_PAGE)
    if page is not None and (page & PAGE_MASK or not start <= page - virt_base < end):
        raise refuse(f"{name}: HYPERCALL_PAGE {page:#x} is not a page of the kernel")
    p2m = numbers.get(n.XEN_ELFNOTE_INIT_P2M)
    if p2m is not None and (p2m >= virt_base or p2m & PAGE_MASK):
        p2m = None  # as Xen does: the note counts only below VIRT_BASE
    return KernelImage(
        name=name,
        format=formats,
        image=elf.data,
        segments=loads,
        notes=notes,
        entry=entry,
        virt_base=virt_base,
        paddr_offset=offset,
        start_gaddr=start,
        end_gaddr=end,
        hypercall_page=page,
        init_p2m=p2m,
        mod_start_pfn=bool(numbers.get(n.XEN_ELFNOTE_MOD_START_PFN)),
    )
