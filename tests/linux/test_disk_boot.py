"""A guest that starts from its own disk: pygrub finds the kernel, blkfront the rest."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.errors import UserError
from pyxen.image.disk import DiskImage, build_disk
from tests.linux.host import PROMPT, Host, wait_until


@pytest.fixture(params=["raw", "qcow2"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> DiskImage:
    try:
        return build_disk(
            tmp_path / "disk", image_format=request.param, size_mib=128, say=lambda line: None
        )
    except UserError as error:
        pytest.skip(f"no demo disk: {error.message}")


def test_disk_boots_and_keeps_what_is_written(host: Host, disk: DiskImage) -> None:
    guest = host.session("create", "-c", str(disk.config))
    guest.expect(PROMPT)
    guest.run("dmesg -n 1")
    assert "/dev/xvda1 on / type ext4 (rw" in guest.run("mount")
    assert guest.run("uname -r") == disk.release
    guest.run("echo 'it was here' >/root/mark; seq 200000 >/root/numbers")
    sum_before = guest.run("md5sum </root/numbers")
    domid = host.list()[0][1]
    guest.type("reboot\n")
    assert guest.end() == 0

    # xend runs pygrub again for the domain that takes the old one's place.
    wait_until(
        lambda: [row[1] for row in host.list() if row[0] == "demo-disk"] not in ([], [domid])
    )
    again = host.console("demo-disk")
    again.type("dmesg -n 1; echo rea''dy\n")  # it may be at its prompt already, or still booting
    again.expect(b"ready\r\n")
    again.expect(PROMPT)
    assert "it was here" in again.run("cat /root/mark")
    assert again.run("md5sum </root/numbers") == sum_before
    host.xl("shutdown", "-w", "demo-disk")
    assert host.list() == []
    assert host.leftovers() <= {"run/xend.sock", "run/xenstored.sock"}


def test_entry_is_chosen_by_arguments(host: Host, disk: DiskImage) -> None:
    guest = host.session("create", "-c", str(disk.config), 'bootloader_args=["--entry=1"]')
    guest.expect(PROMPT)
    assert " ro " in guest.run("cat /proc/cmdline")
    assert "/dev/xvda1 on / type ext4 (ro" in guest.run("mount")
