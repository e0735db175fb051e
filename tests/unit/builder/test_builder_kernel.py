"""Kernels: what is accepted, and what every refusal says."""

import struct
from pathlib import Path

import pytest
from kernel_maker import (
    TEXT,
    VIRT_BASE,
    bzimage,
    compress,
    elf,
    elf32,
    note,
    notes,
    packed_kernel,
)

from pyxen.abi import elfnote
from pyxen.builder.elf import SHT_NOTE
from pyxen.builder.kernel import load_kernel, parse_kernel
from pyxen.builder.notes import parse_features
from pyxen.errors import UserError

PLAIN = elf(notes())


def refusal(data: bytes) -> UserError:
    with pytest.raises(UserError) as caught:
        parse_kernel(data, "vmlinuz")
    assert caught.value.exit_code == 3
    assert caught.value.message.startswith("vmlinuz: ")
    return caught.value


def test_a_plain_elf_file() -> None:
    kernel = parse_kernel(PLAIN, "vmlinux")
    assert kernel.format == "ELF"
    assert kernel.entry == VIRT_BASE + 0x10_0010
    assert (kernel.start_gaddr, kernel.end_gaddr) == (0x10_0000, 0x10_5000)
    assert kernel.init_p2m == 0x80_0000_0000
    assert kernel.mod_start_pfn
    assert kernel.hypercall_page is None
    assert "guest OS test" in kernel.describe()


@pytest.mark.parametrize("name", ["gzip", "bzip2", "xz", "lzma", "lzo", "lz4", "zstd"])
def test_a_bzimage_with_every_payload(name: str) -> None:
    kernel = parse_kernel(packed_kernel(name, PLAIN), "vmlinuz")
    assert kernel.format == f"bzImage, {name}"
    assert kernel.image == PLAIN


def test_compressed_elf_and_compressed_bzimage() -> None:
    assert parse_kernel(compress("gzip", PLAIN), "k").format == "gzip"
    inner = packed_kernel("lz4", PLAIN)
    assert parse_kernel(compress("gzip", inner), "k").format == "gzip, bzImage, lz4"


def test_bzimage_with_an_uncompressed_payload() -> None:
    assert parse_kernel(bzimage(PLAIN), "k").format == "bzImage"


def test_endless_layers_are_refused() -> None:
    data = PLAIN
    for _ in range(5):
        data = compress("gzip", data)
    assert "not a kernel" in refusal(data).message


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist") as caught:
        load_kernel(tmp_path / "none")
    assert caught.value.exit_code == 3
    assert "kernel=" in caught.value.hint
    with pytest.raises(UserError, match=r"directory|regular"):
        load_kernel(tmp_path)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"\x7fEL", "not a kernel"),
        (b"#!/bin/sh\n" * 100, "not a kernel"),
        (b"MZ" + bytes(1000), "not a kernel"),
        (b"\x7fELF\x02\x01\x01", "not an ELF file"),
        (b"\x7fELF\x02\x02\x01" + bytes(100), "little-endian"),
        (bzimage(b"\1\2\3\4" * 10), "payload of unknown format"),
        (bzimage(PLAIN, version=0x206), "boot protocol 2.06"),
        (bzimage(PLAIN)[:2000], "truncated"),
    ],
)
def test_what_is_no_kernel(data: bytes, words: str) -> None:
    assert words in refusal(data).message


def test_every_truncation_is_refused_in_words() -> None:
    for length in range(len(PLAIN)):
        refusal(PLAIN[:length])
    assert "truncated" in refusal(PLAIN[:-1]).message
    packed = packed_kernel("gzip", PLAIN)
    for length in range(0, len(packed) - 9, 7):
        refusal(packed[:length])


def test_no_notes_names_the_kernel_option() -> None:
    error = refusal(elf(b""))
    assert "no Xen ELF notes" in error.message
    assert "CONFIG_XEN_PV" in error.hint
    assert "no Xen ELF notes" in refusal(elf(note(1, b"x" * 8, b"GNU\0"))).message


def test_a_pvh_only_kernel_names_the_missing_note_and_its_type() -> None:
    only = note(elfnote.XEN_ELFNOTE_PHYS32_ENTRY, struct.pack("<I", 0x100_0000))
    for data in (elf(only), elf32(only)):
        error = refusal(data)
        assert "ENTRY is missing" in error.message
        assert 'type="pvh" only' in error.message


def test_a_32_bit_pv_kernel() -> None:
    assert "32-bit PV kernel" in refusal(elf32(notes())).message
    assert "32-bit PV kernel" in refusal(elf(notes(), machine=3)).message


def test_another_architecture() -> None:
    assert "AArch64" in refusal(elf(notes(), machine=183)).message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({elfnote.XEN_ELFNOTE_XEN_VERSION: None}, "XEN_VERSION is missing"),
        ({elfnote.XEN_ELFNOTE_XEN_VERSION: "xen-2.0"}, "'xen-2.0'"),
        ({elfnote.XEN_ELFNOTE_LOADER: None}, "LOADER"),
        ({elfnote.XEN_ELFNOTE_FEATURES: "!dom0"}, "feature dom0"),
        ({elfnote.XEN_ELFNOTE_FEATURES: "!time_travel"}, "time_travel"),
        ({elfnote.XEN_ELFNOTE_ENTRY: 0x1000}, "entry point 0x1000 is outside"),
        ({elfnote.XEN_ELFNOTE_ENTRY: b"abc"}, "has 3 bytes"),
        ({elfnote.XEN_ELFNOTE_VIRT_BASE: VIRT_BASE + 1}, "page boundary"),
        ({elfnote.XEN_ELFNOTE_VIRT_BASE: 0xFFFF_8000_0000_0000}, "address space"),
        ({elfnote.XEN_ELFNOTE_VIRT_BASE: 0xFFFF_FFFF_FFFF_F000}, "address space"),
        ({elfnote.XEN_ELFNOTE_VIRT_BASE: 1 << 50}, "address space"),
        ({elfnote.XEN_ELFNOTE_PADDR_OFFSET: 1 << 30}, "below PADDR_OFFSET"),
        ({elfnote.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE}, "HYPERCALL_PAGE"),
        ({elfnote.XEN_ELFNOTE_HYPERCALL_PAGE: VIRT_BASE + 0x10_0010}, "HYPERCALL_PAGE"),
    ],
)
def test_notes_that_make_no_sense(changes: dict[int, int | str | bytes | None], words: str) -> None:
    assert words in refusal(elf(notes(changes))).message


def test_nothing_to_load() -> None:
    assert "nothing to load" in refusal(elf(notes(), segments=())).message


def test_entry_falls_back_to_the_elf_header() -> None:
    kernel = parse_kernel(elf(notes({elfnote.XEN_ELFNOTE_ENTRY: None})), "k")
    assert kernel.entry == VIRT_BASE + 0x10_0000


def test_a_small_kernel_that_relies_on_the_defaults() -> None:
    """As XTF: neither ENTRY nor VIRT_BASE, linked at its physical address."""
    changes: dict[int, int | str | bytes | None] = {
        elfnote.XEN_ELFNOTE_ENTRY: None,
        elfnote.XEN_ELFNOTE_VIRT_BASE: None,
        elfnote.XEN_ELFNOTE_PADDR_OFFSET: None,
        elfnote.XEN_ELFNOTE_INIT_P2M: None,
    }
    kernel = parse_kernel(elf(notes(changes), entry=0x10_0040), "xtf")
    assert (kernel.virt_base, kernel.entry) == (0, 0x10_0040)
    changes[elfnote.XEN_ELFNOTE_XEN_VERSION] = None
    assert "XEN_VERSION" in refusal(elf(notes(changes), entry=0x10_0040)).message


def test_numbers_of_four_bytes() -> None:
    changes = {elfnote.XEN_ELFNOTE_MOD_START_PFN: struct.pack("<I", 0)}
    assert not parse_kernel(elf(notes(changes)), "k").mod_start_pfn


def test_init_p2m_above_the_kernel_is_ignored_as_xen_does() -> None:
    changes = {elfnote.XEN_ELFNOTE_INIT_P2M: VIRT_BASE + (1 << 30)}
    assert parse_kernel(elf(notes(changes)), "k").init_p2m is None


def test_notes_in_a_section_only() -> None:
    kernel = parse_kernel(elf(b"", sections=[(b".notes", SHT_NOTE, notes())]), "k")
    assert kernel.mod_start_pfn


def test_the_legacy_section() -> None:
    text = (
        b"GUEST_OS=old,XEN_VER=xen-3.0,VIRT_BASE=0xffffffff80000000,"
        b"VIRT_ENTRY=0xffffffff80100020,HYPERCALL_PAGE=0x102,ELF_PADDR_OFFSET=0x0,"
        b"FEATURES=writable_page_tables,LOADER=generic,BSD_SYMTAB\0"
    )
    kernel = parse_kernel(elf(b"", sections=[(b"__xen_guest", 1, text)]), "k")
    assert kernel.notes.legacy
    assert kernel.entry == VIRT_BASE + 0x10_0020
    assert kernel.hypercall_page == VIRT_BASE + 0x10_2000
    assert kernel.notes.supported == 1


def test_features() -> None:
    assert parse_features("") == (0, 0, ())
    supported, required, unknown = parse_features("!writable_page_tables|new|!other")
    assert (supported, required, unknown) == (1, 1, ("other",))


def test_hostile_headers_do_no_harm() -> None:
    for at in range(16, 64 + 56 * 2):
        for value in (0, 0x7F, 0xFF):
            data = bytearray(PLAIN)
            data[at] = value
            try:
                parse_kernel(bytes(data), "vmlinuz")
            except UserError as error:
                assert error.exit_code == 3


def test_the_segment_content_is_where_the_segment_says() -> None:
    kernel = parse_kernel(PLAIN, "k")
    (segment,) = kernel.segments
    assert kernel.image[segment.offset : segment.offset + segment.file_bytes] == TEXT
