"""Disks end to end: Debian's own xen-blkfront, xl, images on the host."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pyxen.image.demo import DemoImage
from tests.linux.host import PROMPT, Host, Session, wait_until, write_config

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A raw image of 16 MiB with random bytes at its start."""
    path = tmp_path / "disk.img"
    with open(path, "wb") as file:
        file.write(os.urandom(2 * MIB))
        file.truncate(16 * MIB)
    return path


@pytest.fixture
def start(tmp_path: Path, demo: DemoImage, host: Host) -> Callable[..., Session]:
    """Starts the demo guest with these disks; its console, at the prompt."""

    def start_one(*disks: str) -> Session:
        config = write_config(
            tmp_path / "guest.cfg",
            name="guest",
            kernel=demo.kernel,
            ramdisk=demo.ramdisk,
            extra="console=hvc0 earlyprintk=xen lockdown=confidentiality",
            memory=128,
        )
        with open(config, "a") as file:
            file.write(f"disk = {list(disks)}\n")
        console = host.session("create", "-c", str(config))
        console.expect(PROMPT)
        # The kernel's messages would stand between what commands print.
        console.run("dmesg -n 1")
        return console

    return start_one


def make_file_system(image: Path) -> None:
    subprocess.run(["/sbin/mke2fs", "-q", "-F", "-t", "ext4", str(image)], check=True)


def has_device(console: Session, name: str) -> bool:
    return name in console.run("cat /proc/partitions").split()


def states(host: Host) -> list[list[str]]:
    return [line.split() for line in host.xl("block-list", "guest").stdout.splitlines()[1:]]


def test_a_disk_of_the_configuration(
    start: Callable[..., Session], host: Host, image: Path
) -> None:
    make_file_system(image)
    console = start(f"{image},raw,xvda,rw")
    wait_until(lambda: has_device(console, "xvda"))
    whole = hashlib.md5(image.read_bytes()).hexdigest()
    assert console.run("md5sum /dev/xvda").split()[0] == whole
    console.run("mount -t ext4 /dev/xvda /mnt")
    console.run("dd if=/dev/urandom of=/mnt/file bs=64k count=64 2>/dev/null; sync")
    written = console.run("md5sum /mnt/file").split()[0]
    assert "/dev/xvda /mnt ext4" in console.run("grep xvda /proc/mounts")
    console.run("umount /mnt; echo 3 >/proc/sys/vm/drop_caches; mount -t ext4 /dev/xvda /mnt")
    assert console.run("md5sum /mnt/file").split()[0] == written
    console.run("umount /mnt")
    (row,) = states(host)
    assert row[:4] == ["51712", "0", row[2], "4"]
    assert row[6] == f"/local/domain/0/backend/vbd/{row[2]}/51712"
    console.type("poweroff\n")
    console.end()
    wait_until(lambda: host.list() == [])


def test_attach_write_detach(start: Callable[..., Session], host: Host, image: Path) -> None:
    console = start()
    host.xl("block-attach", "guest", f"{image},raw,xvdb,rw")
    wait_until(lambda: has_device(console, "xvdb"))
    assert [row[0] for row in states(host)] == ["51728"]
    again = host.xl("block-attach", "guest", f"{image},raw,xvdb,rw", check=False)
    assert again.returncode == 1
    console.run("head -c 300000 /dev/urandom >/tmp/data; dd if=/tmp/data of=/dev/xvdb 2>/dev/null")
    sent = console.run("md5sum /tmp/data").split()[0]
    host.xl("block-detach", "guest", "xvdb")
    assert hashlib.md5(image.read_bytes()[:300000]).hexdigest() == sent
    assert states(host) == []
    wait_until(lambda: not has_device(console, "xvdb"))
    host.xl("block-attach", "guest", f"vdev=xvdb,access=ro,target={image}")
    wait_until(lambda: has_device(console, "xvdb"))
    assert console.run("cat /sys/block/xvdb/ro") == "1"
    host.xl("block-detach", "guest", "51728")


def test_an_image_that_is_not_there_leaves_nothing(
    start: Callable[..., Session], host: Host, tmp_path: Path, image: Path, demo: DemoImage
) -> None:
    start()
    for spec, code in ((f"{tmp_path}/none,raw,xvdb,rw", 1), (f"{tmp_path},raw,xvdb,rw", 1)):
        refused = host.xl("block-attach", "guest", spec, check=False)
        assert refused.returncode == code
        assert str(tmp_path) in refused.stderr
        assert states(host) == []
    config = write_config(tmp_path / "bad.cfg", name="bad", kernel=demo.kernel, memory=128)
    with open(config, "a") as file:
        file.write(f"disk = ['{image},raw,xvda,rw', '{tmp_path}/none,raw,xvdb,rw']\n")
    assert host.xl("create", str(config), check=False).returncode == 3
    assert [row[0] for row in host.list()] == ["guest"]


def test_a_paused_domain(start: Callable[..., Session], host: Host, image: Path) -> None:
    console = start()
    host.xl("pause", "guest")
    host.xl("block-attach", "guest", f"{image},raw,xvdb,rw")
    assert states(host)[0][3:6] == ["1", "-1", "-1"]
    host.xl("block-detach", "guest", "xvdb")
    assert states(host) == []
    host.xl("block-attach", "guest", f"{image},raw,xvdb,rw")
    host.xl("unpause", "guest")
    wait_until(lambda: states(host)[0][3] == "4")
    wait_until(lambda: has_device(console, "xvdb"))
    host.xl("pause", "guest")
    assert host.xl("block-detach", "guest", "xvdb", check=False).returncode == 1
    assert states(host)[0][3] == "4"
    host.xl("block-detach", "--force", "guest", "xvdb")
    assert states(host) == []


def test_media_of_a_drive(start: Callable[..., Session], host: Host, image: Path) -> None:
    other = image.with_name("other.img")
    other.write_bytes(bytes(MIB))
    console = start(",empty,xvdc:cdrom,r", f"{other},raw,xvda,rw")
    wait_until(lambda: has_device(console, "xvda"))
    size = "cat /sys/block/xvdc/size"
    assert console.run(size) == "0"
    host.xl("cd-insert", "guest", "xvdc", str(image))
    wait_until(lambda: console.run(size) == str(16 * MIB // 512))
    assert console.run("head -c 4096 /dev/xvdc | md5sum").split()[0] == (
        hashlib.md5(image.read_bytes()[:4096]).hexdigest()
    )
    for bad in (f"{image}.none", str(image.parent), str(other)):
        assert host.xl("cd-insert", "guest", "xvdc", bad, check=False).returncode == 1
    assert host.xl("cd-eject", "guest", "xvda", check=False).returncode == 1
    assert console.run(size) == str(16 * MIB // 512)
    host.xl("cd-eject", "guest", "xvdc")
    wait_until(lambda: console.run(size) == "0")


def test_an_image_that_grows(start: Callable[..., Session], image: Path) -> None:
    console = start(f"{image},raw,xvda,rw")
    wait_until(lambda: has_device(console, "xvda"))
    os.truncate(image, 32 * MIB)
    console.run("dd if=/dev/xvda of=/dev/null bs=4k count=1 iflag=direct 2>/dev/null")
    wait_until(lambda: console.run("cat /sys/block/xvda/size") == str(32 * MIB // 512))
    console.run("echo the end | dd of=/dev/xvda bs=1M seek=31 conv=fsync 2>/dev/null")
    assert image.read_bytes()[31 * MIB :].startswith(b"the end")


def test_detach_of_a_mounted_disk(start: Callable[..., Session], host: Host, image: Path) -> None:
    """Linux since 5.14 lets a disk that is in use go; what was synced is on the host."""
    make_file_system(image)
    console = start(f"{image},raw,xvda,rw")
    wait_until(lambda: has_device(console, "xvda"))
    console.run("mount -t ext4 /dev/xvda /mnt")
    assert "/dev/xvda /mnt ext4" in console.run("grep xvda /proc/mounts")
    console.run("echo kept for good >/mnt/file; sync")
    done = host.xl("block-detach", "guest", "xvda", check=False)
    assert done.returncode == 0, done.stderr
    assert b"kept for good" in image.read_bytes()
    assert states(host) == []


def test_disks_outlive_xend_and_reboots(
    start: Callable[..., Session], host: Host, image: Path
) -> None:
    console = start()
    host.xl("block-attach", "guest", f"{image},raw,xvdb,rw")
    wait_until(lambda: has_device(console, "xvdb"))
    os.kill(host.xend_pid(), signal.SIGKILL)
    console.run("echo without xend | dd of=/dev/xvdb conv=fsync 2>/dev/null")
    assert image.read_bytes().startswith(b"without xend")
    assert states(host)[0][3] == "4"
    assert '"vdev": "xvdb"' in host.xl("list", "-l", "guest").stdout
    wait_until(lambda: host.xl("block-detach", "guest", "xvdb", check=False).returncode == 0)
    host.xl("block-attach", "guest", f"{image},raw,xvdb,rw")
    console.type("reboot\n")
    wait_until(lambda: host.list()[0][1] == "2")
    again = host.console("guest")
    again.expect(PROMPT)
    wait_until(lambda: has_device(again, "xvdb"))
    assert again.run("head -c 12 /dev/xvdb") == "without xend"


def test_what_was_synced_survives_the_domain_process(
    start: Callable[..., Session], host: Host, image: Path
) -> None:
    console = start(f"{image},raw,xvda,rw")
    wait_until(lambda: has_device(console, "xvda"))
    console.type(
        "n=0; while :; do n=$((n+1)); printf '%08d' $n | "
        "dd of=/dev/xvda bs=512 seek=$n conv=fsync 2>/dev/null && echo synced-$n.; done\n"
    )
    console.expect(b"synced-20.")
    (pid,) = [
        pid
        for pid in host.processes()
        if b"pyxen.domain" in Path(f"/proc/{pid}/cmdline").read_bytes()
        and Path(f"/proc/{pid}/comm").read_text().startswith("xen:guest")
    ]
    os.kill(pid, signal.SIGKILL)
    console.end()
    last = max(int(number) for number in re.findall(rb"synced-(\d+)\.", console.output))
    data = image.read_bytes()
    for number in range(1, last + 1):
        assert data[number * 512 :].startswith(b"%08d" % number), number


def test_a_qcow2_image(start: Callable[..., Session], host: Host, tmp_path: Path) -> None:
    image, raw = tmp_path / "disk.qcow2", tmp_path / "disk.raw"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "16M"], check=True)
    console = start()
    host.xl("block-attach", "guest", f"{image},qcow2,xvdb,rw")
    wait_until(lambda: has_device(console, "xvdb"))
    assert "/backend/qdisk/" in states(host)[0][6]
    console.run("dd if=/dev/urandom of=/tmp/data bs=64k count=16 2>/dev/null")
    console.run("dd if=/tmp/data of=/dev/xvdb bs=64k seek=8 2>/dev/null")
    sent = console.run("md5sum /tmp/data").split()[0]
    host.xl("block-detach", "guest", "xvdb")
    subprocess.run(["qemu-img", "convert", "-O", "raw", str(image), str(raw)], check=True)
    assert hashlib.md5(raw.read_bytes()[MIB // 2 : MIB // 2 + MIB]).hexdigest() == sent


def test_the_full_kernel_mounts_ext4(
    tmp_path: Path, full_demo: DemoImage, host: Host, image: Path
) -> None:
    """Its ext4 is a module, with checksums in another."""
    make_file_system(image)
    config = write_config(
        tmp_path / "full.cfg",
        name="full",
        kernel=full_demo.kernel,
        ramdisk=full_demo.ramdisk,
        extra="console=hvc0 earlyprintk=xen lockdown=confidentiality",
        memory=192,
    )
    with open(config, "a") as file:
        file.write(f"disk = ['{image},raw,xvda,rw']\n")
    console = host.session("create", "-c", str(config))
    console.expect(PROMPT)
    console.run("dmesg -n 1")
    wait_until(lambda: has_device(console, "xvda"))
    console.run("mount /dev/xvda /mnt")
    assert "/dev/xvda /mnt ext4" in console.run("grep xvda /proc/mounts")
