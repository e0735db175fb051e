"""GRUB as a PV kernel, and 32-bit programs in a 64-bit guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pyxen.errors import UserError
from pyxen.image.apt import Apt
from pyxen.image.cpio import CpioWriter
from pyxen.image.demo import DemoImage
from tests.linux.host import PROMPT, Host, write_config

GRUB = "usr/lib/grub-xen/grub-x86_64-xen.bin"


def fetched(package: str, file: str, architecture: str | None = None) -> Path:
    """A file of a Debian package. Skips without the network, or without PYXEN_TEST_FETCH=1."""
    apt = Apt(say=lambda _line: None, architecture=architecture)
    known = apt.cache / "trees" / package / file
    if not known.is_file() and os.environ.get("PYXEN_TEST_FETCH") != "1":
        pytest.skip(f"{package} is not in the cache: PYXEN_TEST_FETCH=1 fetches it")
    try:
        return apt.fetch_package(package) / file
    except UserError as error:
        pytest.skip(error.message)


def test_grub_obeys_its_prompt(host: Host, tmp_path: Path) -> None:
    kernel = fetched("grub-xen-host", GRUB)
    config = write_config(tmp_path / "grub.cfg", name="grub", kernel=kernel, memory=128)
    guest = host.session("create", "-c", str(config))
    guest.expect(b"Welcome to GRUB!")
    guest.expect(b"grub> ")
    for command, answer in (
        ("ls", b"(memdisk)"),
        ("echo hello", b"hello"),  # what is typed comes back with escapes between the letters
        ("set", b"grub_platform=xen"),
    ):
        guest.type(command + "\r")
        guest.expect(answer)
        guest.expect(b"grub> ")
    guest.type("halt\r")
    assert guest.end() == 0
    assert host.list() == []


def test_32_bit_programs(host: Host, tmp_path: Path, demo: DemoImage) -> None:
    busybox = fetched("busybox-static", "bin/busybox", "i386")
    assert busybox.read_bytes()[4] == 1, "an ELF file of 32 bits"
    archive = CpioWriter()
    archive.file("bin/busybox32", busybox.read_bytes(), 0o755)
    ramdisk = tmp_path / "initrd.img"
    # Linux unpacks archives that follow each other one over the other.
    ramdisk.write_bytes(demo.ramdisk.read_bytes() + archive.finish())
    config = write_config(
        tmp_path / "guest.cfg",
        name="guest",
        kernel=demo.kernel,
        ramdisk=ramdisk,
        extra="console=hvc0 lockdown=confidentiality",
        memory=128,
    )
    guest = host.session("create", "-c", str(config))
    guest.expect(PROMPT)
    # Children, a pipe, the clock (through the vdso), signals. Short lines: the shell wraps them.
    assert guest.run("busybox32 sh -c 'echo $((6 * 7))'") == "42"
    assert guest.run("busybox32 seq 500 | busybox32 tail -n 1") == "500"
    assert abs(int(guest.run("busybox32 date +%s")) - int(guest.run("date +%s"))) <= 60
    assert guest.run("busybox32 timeout 1 busybox32 sleep 100; echo $?").endswith("143")
    assert guest.run("busybox32 sh -c 'kill -SEGV $$'; echo $?").endswith("139")
    sums = [guest.run(f"{program} md5sum /bin/busybox32") for program in ("busybox32", "busybox")]
    assert sums[0] == sums[1]
