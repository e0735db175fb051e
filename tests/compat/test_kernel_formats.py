"""Debian's own kernels through the builder: every format that a distribution ships.

They are taken from the cache of `pyxen image demo`; PYXEN_TEST_FETCH=1 fetches what is missing.
"""

import os
from pathlib import Path

import pytest

from pyxen.abi.xen import StartInfo
from pyxen.builder.kernel import KernelImage, load_kernel
from pyxen.builder.pv import PvOptions, build
from pyxen.builder.symbols import find_symbols, system_map_beside
from pyxen.errors import UserError
from pyxen.image.apt import Apt
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.memory.pagetable import translate
from pyxen.types import Mfn, Port

OPTIONS = PvOptions(Mfn(0x20), Port(1), Port(2))


def kernel_path(package: str) -> Path:
    """The kernel of a meta package, or skip."""
    apt = Apt(say=lambda _line: None)
    note = apt.cache / f"{package}.depends"
    fetch = os.environ.get("PYXEN_TEST_FETCH") == "1"
    try:
        if fetch:
            depends = apt.describe(package)["Depends"]
        else:
            depends = note.read_text() if note.is_file() else ""
        name = depends.split(",")[0].split("(")[0].strip()
        if not fetch and not (apt.cache / "trees" / name / "boot").is_dir():
            pytest.skip(f"{package} is not in the cache: PYXEN_TEST_FETCH=1 fetches it")
        return next((apt.fetch_package(name) / "boot").glob("vmlinuz-*"))
    except UserError as e:
        pytest.skip(e.message)


@pytest.fixture(scope="module", params=["linux-image-cloud-amd64", "linux-image-amd64"])
def kernel(request: pytest.FixtureRequest) -> KernelImage:
    return load_kernel(kernel_path(request.param))


def test_notes(kernel: KernelImage) -> None:
    assert kernel.format.startswith("bzImage, ")
    assert kernel.notes.guest_types() == ("pv", "pvh")
    assert kernel.virt_base == 0xFFFF_FFFF_8000_0000
    assert kernel.init_p2m == 0x80_0000_0000
    assert kernel.start_gaddr == 16 << 20
    assert kernel.mod_start_pfn
    assert kernel.hypercall_page is None


def test_symbols(kernel: KernelImage) -> None:
    symbols = find_symbols(kernel.image, system_map_beside(Path(kernel.name)))
    assert symbols is not None
    assert len(symbols) > 50_000
    assert str(symbols.lookup(kernel.entry)) == "startup_xen+0x0"
    start = symbols.address_of("xen_start_kernel")
    assert start is not None
    assert str(symbols.lookup(start + 5)) == "xen_start_kernel+0x5"


def test_build(kernel: KernelImage) -> None:
    memory = MachineMemory(256 << 8)
    try:
        built = build(memory, kernel, b"ramdisk", "console=hvc0", OPTIONS)
        cr3 = built.l4_mfn << 12
        assert translate(memory, cr3, built.entry) == kernel.entry - kernel.virt_base + (
            XEN_PAGES << 12
        )
        info = StartInfo.unpack(memory.read(built.start_info_mfn << 12, StartInfo.SIZE))
        assert info.nr_pages == 256 << 8
        for segment in kernel.segments:
            data = kernel.image[segment.offset : segment.offset + segment.file_bytes]
            assert memory.read((XEN_PAGES << 12) + segment.paddr, len(data)) == data
    finally:
        memory.close()


def test_too_little_memory(kernel: KernelImage) -> None:
    memory = MachineMemory(48 << 8)
    try:
        with pytest.raises(UserError, match="48 MiB of memory are too small"):
            build(memory, kernel, None, "", OPTIONS)
    finally:
        memory.close()
