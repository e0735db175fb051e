"""What a kernel says about itself to Xen: ELF notes, or the older `__xen_guest` section.

Source: public/elfnote.h, public/features.h; docs/misc/pvh.pandoc for PHYS32_ENTRY.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from pyxen.abi import elfnote, features
from pyxen.abi.elfnote import (
    XEN_ELFNOTE_BSD_SYMTAB,
    XEN_ELFNOTE_ENTRY,
    XEN_ELFNOTE_FEATURES,
    XEN_ELFNOTE_GUEST_OS,
    XEN_ELFNOTE_GUEST_VERSION,
    XEN_ELFNOTE_HV_START_LOW,
    XEN_ELFNOTE_HYPERCALL_PAGE,
    XEN_ELFNOTE_INIT_P2M,
    XEN_ELFNOTE_L1_MFN_VALID,
    XEN_ELFNOTE_LOADER,
    XEN_ELFNOTE_MOD_START_PFN,
    XEN_ELFNOTE_PADDR_OFFSET,
    XEN_ELFNOTE_PAE_MODE,
    XEN_ELFNOTE_PHYS32_ENTRY,
    XEN_ELFNOTE_SUPPORTED_FEATURES,
    XEN_ELFNOTE_SUSPEND_CANCEL,
    XEN_ELFNOTE_VIRT_BASE,
    XEN_ELFNOTE_XEN_VERSION,
)
from pyxen.builder.elf import Elf, Note
from pyxen.builder.failure import refuse
from pyxen.types import U64

# Newer than the ABI of Xen 4.17: only a PVH loader has a use for it.
XEN_ELFNOTE_PHYS32_RELOC: Final = 19

NOTE_NAMES: Final = {
    getattr(elfnote, f"XEN_ELFNOTE_{name}", XEN_ELFNOTE_PHYS32_RELOC): name
    for name in (
        "INFO",
        "ENTRY",
        "HYPERCALL_PAGE",
        "VIRT_BASE",
        "PADDR_OFFSET",
        "XEN_VERSION",
        "GUEST_OS",
        "GUEST_VERSION",
        "LOADER",
        "PAE_MODE",
        "FEATURES",
        "BSD_SYMTAB",
        "HV_START_LOW",
        "L1_MFN_VALID",
        "SUSPEND_CANCEL",
        "INIT_P2M",
        "MOD_START_PFN",
        "SUPPORTED_FEATURES",
        "PHYS32_ENTRY",
        "PHYS32_RELOC",
    )
}

_NUMBERS: Final = frozenset(
    (
        XEN_ELFNOTE_ENTRY,
        XEN_ELFNOTE_HYPERCALL_PAGE,
        XEN_ELFNOTE_VIRT_BASE,
        XEN_ELFNOTE_PADDR_OFFSET,
        XEN_ELFNOTE_HV_START_LOW,
        XEN_ELFNOTE_SUSPEND_CANCEL,
        XEN_ELFNOTE_INIT_P2M,
        XEN_ELFNOTE_MOD_START_PFN,
        XEN_ELFNOTE_SUPPORTED_FEATURES,
        XEN_ELFNOTE_PHYS32_ENTRY,
    )
)

FEATURE_BITS: Final = {
    name: getattr(features, f"XENFEAT_{name}")
    for name in (
        "writable_page_tables",
        "writable_descriptor_tables",
        "auto_translated_physmap",
        "supervisor_mode_kernel",
        "pae_pgdir_above_4gb",
        "hvm_callback_vector",
        "dom0",
    )
}
"""The names that may stand in a FEATURES note, and their XENFEAT_ numbers."""

# Legacy name -> the note it became.
_LEGACY_STRINGS: Final = {
    "LOADER": XEN_ELFNOTE_LOADER,
    "GUEST_OS": XEN_ELFNOTE_GUEST_OS,
    "GUEST_VER": XEN_ELFNOTE_GUEST_VERSION,
    "XEN_VER": XEN_ELFNOTE_XEN_VERSION,
    "PAE": XEN_ELFNOTE_PAE_MODE,
    "FEATURES": XEN_ELFNOTE_FEATURES,
}
_LEGACY_NUMBERS: Final = {
    "VIRT_BASE": XEN_ELFNOTE_VIRT_BASE,
    "VIRT_ENTRY": XEN_ELFNOTE_ENTRY,
    "ELF_PADDR_OFFSET": XEN_ELFNOTE_PADDR_OFFSET,
    "HYPERCALL_PAGE": XEN_ELFNOTE_HYPERCALL_PAGE,
}
_LEGACY_MAX_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class XenNotes:
    """A kernel's notes. `numbers` and `strings` are by note type; the last of a kind wins.

    supported, required: bit sets of XENFEAT_ numbers.
    unknown_required: required features whose name is not in public/features.h.
    """

    numbers: dict[int, int] = field(default_factory=dict)
    strings: dict[int, str] = field(default_factory=dict)
    raw: dict[int, bytes] = field(default_factory=dict)
    legacy: bool = False
    supported: int = 0
    required: int = 0
    unknown_required: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether the kernel says nothing to Xen at all."""
        return not (self.numbers or self.strings or self.raw)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the notes that are there, in numeric order."""
        kinds = sorted({*self.numbers, *self.strings, *self.raw})
        return tuple(NOTE_NAMES.get(kind, f"note {kind}") for kind in kinds)

    def guest_types(self) -> tuple[str, ...]:
        """The values of xl.cfg's `type=` that this kernel can be started with.

        ENTRY and VIRT_BASE have defaults (the ELF header's entry, 0), so a small PV kernel may have
        neither; but a kernel with PHYS32_ENTRY and neither is made for PVH.
        """
        pvh = XEN_ELFNOTE_PHYS32_ENTRY in self.numbers
        placed = XEN_ELFNOTE_ENTRY in self.numbers or XEN_ELFNOTE_VIRT_BASE in self.numbers
        pv = placed or (not pvh and XEN_ELFNOTE_XEN_VERSION in self.strings)
        return ("pv",) * pv + ("pvh",) * pvh


def read_notes(elf: Elf) -> XenNotes:
    """All of the kernel's Xen notes. Raises UserError if a note has an impossible content."""
    numbers: dict[int, int] = {}
    strings: dict[int, str] = {}
    raw: dict[int, bytes] = {}
    for note in elf.notes():
        if note.name != b"Xen":
            continue
        if note.type in _NUMBERS:
            numbers[note.type] = _number(elf, note)
        elif note.type in (XEN_ELFNOTE_L1_MFN_VALID, XEN_ELFNOTE_PHYS32_RELOC):
            raw[note.type] = note.desc
        elif note.type <= XEN_ELFNOTE_PHYS32_RELOC:
            strings[note.type] = _text(note.desc)
    legacy = not (numbers or strings or raw) and _read_legacy(elf, numbers, strings)
    supported, required, unknown = parse_features(strings.get(XEN_ELFNOTE_FEATURES, ""))
    supported |= numbers.get(XEN_ELFNOTE_SUPPORTED_FEATURES, 0)
    return XenNotes(numbers, strings, raw, legacy, supported, required, unknown)


def parse_features(text: str) -> tuple[int, int, tuple[str, ...]]:
    """(supported, required, unknown required names) of `a|!b|c`; `!` marks a required one."""
    supported = required = 0
    unknown = []
    for word in text.split("|"):
        name = word.removeprefix("!")
        must = word.startswith("!")
        bit = FEATURE_BITS.get(name)
        if bit is None:
            if must:
                unknown.append(name)
            continue
        supported |= 1 << bit
        required |= must << bit
    return supported, required, tuple(unknown)


def _number(elf: Elf, note: Note) -> int:
    if len(note.desc) not in (4, 8):
        raise refuse(
            f"{elf.name}: the ELF note {NOTE_NAMES[note.type]} has {len(note.desc)} bytes "
            "where a number of 4 or 8 belongs"
        )
    return int.from_bytes(note.desc, "little")


def _text(desc: bytes) -> str:
    return desc.split(b"\0", 1)[0].decode("latin-1")


def _read_legacy(elf: Elf, numbers: dict[int, int], strings: dict[int, str]) -> bool:
    """Fill in what a `__xen_guest` section says: `NAME=VALUE,NAME=VALUE,…`."""
    section = elf.section(b"__xen_guest")
    if section is None:
        return False
    text = _text(elf.content(section)[:_LEGACY_MAX_BYTES])
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name in _LEGACY_STRINGS:
            strings[_LEGACY_STRINGS[name]] = value
        elif name == "BSD_SYMTAB":
            strings[XEN_ELFNOTE_BSD_SYMTAB] = "yes"
        elif name in _LEGACY_NUMBERS:
            try:
                numbers[_LEGACY_NUMBERS[name]] = int(value, 0) & U64
            except ValueError:
                raise refuse(f"{elf.name}: __xen_guest says {name}={value!r}") from None
    base = numbers.get(XEN_ELFNOTE_VIRT_BASE)
    page = numbers.get(XEN_ELFNOTE_HYPERCALL_PAGE)
    if page is not None:  # a page number here, an address in the note
        numbers[XEN_ELFNOTE_HYPERCALL_PAGE] = ((page << 12) + (base or 0)) & U64
    if base is not None:  # old kernels put virtual addresses into the ELF paddr fields
        numbers.setdefault(XEN_ELFNOTE_PADDR_OFFSET, base)
    return True
