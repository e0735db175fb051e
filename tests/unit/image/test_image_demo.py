"""The demo image from stand-ins for the kernel and busybox."""

import lzma
import re
import struct
import subprocess
from pathlib import Path

import pytest
from test_image_cpio import read

from pyxen.errors import UserError
from pyxen.image.apt import Apt
from pyxen.image.demo import KERNEL_PACKAGES, PROMPT, build_demo
from pyxen.image.guest_files import PROFILE, SCRIPTS
from pyxen.image.initramfs import build_initramfs
from pyxen.image.modules import Module, collect_modules, dependency_files


def silent(_line: str) -> None:
    pass


@pytest.fixture
def busybox(tmp_path: Path) -> Path:
    path = tmp_path / "busybox"
    path.write_text("#!/bin/sh\nprintf 'ash\\nbusybox\\nmount\\npoweroff\\nsh\\n'\n")
    path.chmod(0o755)
    return path


def module(depends: bytes = b"", alias: bytes = b"") -> bytes:
    return b"\x7fELF....license=GPL\0depends=" + depends + b"\0alias=" + alias + b"\0alias=b\0~Sig"


def package_tree(root: Path) -> Path:
    """What Debian's kernel package looks like."""
    (root / "boot").mkdir(parents=True)
    (root / "boot" / "vmlinuz-6.1.0-test").write_bytes(b"the kernel")
    drivers = root / "lib/modules/6.1.0-test/kernel/drivers"
    drivers.mkdir(parents=True)
    (drivers / "xen-blkfront.ko").write_bytes(module(alias=b"xen:vbd"))
    (drivers / "xen-netfront.ko.xz").write_bytes(lzma.compress(module(b"page_pool,net-core")))
    (drivers / "page_pool.ko").write_bytes(module(b"net-core"))
    (drivers / "net-core.ko").write_bytes(module())
    return root


def test_modules_come_in_loading_order(tmp_path: Path) -> None:
    found = collect_modules(package_tree(tmp_path / "t"), ("xen-netfront", "xen-blkfront", "none"))
    assert [m.name for m in found] == ["net_core", "page_pool", "xen_netfront", "xen_blkfront"]
    files = dependency_files(found)
    dep = files["modules.dep"].decode().splitlines()
    assert "xen_netfront.ko: page_pool.ko net_core.ko" in dep
    assert "xen_blkfront.ko:" in dep
    assert "alias xen:vbd xen_blkfront" in files["modules.alias"].decode()
    assert "alias b xen_blkfront" in files["modules.alias"].decode()


def test_modules_that_depend_on_each_other(tmp_path: Path) -> None:
    drivers = tmp_path / "lib/modules/1/kernel"
    drivers.mkdir(parents=True)
    (drivers / "a.ko").write_bytes(module(b"b"))
    (drivers / "b.ko").write_bytes(module(b"a"))
    found = collect_modules(tmp_path, ("a",))
    assert {m.name for m in found} == {"a", "b"}
    dependency_files(found)


def test_the_initramfs(busybox: Path) -> None:
    blk = Module("xen_blkfront", b"\x7fELF", (), ("xen:vbd",))
    entries = read(build_initramfs(busybox, [blk], "6.1.0-test"))
    assert entries["init"].mode & 0o111
    assert entries["dev/console"].device == (5, 1)
    assert entries["bin/sh"].data == b"busybox"
    assert entries["bin/busybox"].data == busybox.read_bytes()
    assert b"poweroff -f" in entries["bin/poweroff"].data  # ours, not the applet
    assert entries["sbin"].data == b"/bin"
    assert entries["lib/modules/6.1.0-test/xen_blkfront.ko"].data == b"\x7fELF"
    assert "lib/modules/6.1.0-test/modules.dep" in entries


def test_a_busybox_that_is_none(tmp_path: Path, busybox: Path) -> None:
    busybox.write_text("#!/bin/sh\necho ls\n")
    with pytest.raises(UserError, match="no sh"):
        build_initramfs(busybox)
    busybox.write_bytes(b"\x7fELF for another machine")
    with pytest.raises(UserError, match="cannot be run"):
        build_initramfs(busybox)


@pytest.mark.parametrize("name", [*SCRIPTS, "profile"])
def test_the_guests_scripts_are_valid_shell(name: str) -> None:
    text = PROFILE if name == "profile" else SCRIPTS[name]
    done = subprocess.run(["sh", "-n"], input=text, text=True, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


def xenstore(
    tmp_path: Path, script: str, arguments: list[str], request: bytes, kind: int, reply: bytes
) -> subprocess.CompletedProcess[str]:
    """Run a script against a file: it has to write `request` first, and finds a reply behind."""
    device = tmp_path / "xenbus"
    header = struct.pack("<IIII", kind, 0, 0, len(reply))
    device.write_bytes(bytes(len(request)) + header + reply)
    text = SCRIPTS[script].replace("/dev/xen/xenbus", str(device))
    text = text.replace("/tmp/xs.$$", str(tmp_path / "scratch"))
    done = subprocess.run(
        ["sh", "-c", text, script, *arguments], text=True, capture_output=True, check=False
    )
    assert device.read_bytes().startswith(request)
    return done


def test_the_guests_xenstore_scripts_speak_the_protocol(tmp_path: Path) -> None:
    read_name = struct.pack("<IIII", 2, 0, 0, 5) + b"name\0"
    done = xenstore(tmp_path, "bin/xenstore-read", ["name"], read_name, 2, b"demo")
    assert (done.stdout, done.returncode) == ("demo\n", 0)
    done = xenstore(tmp_path, "bin/xenstore-read", ["name"], read_name, 16, b"ENOENT\0")
    assert (done.stdout, done.stderr, done.returncode) == ("", "ENOENT\n", 1)
    listing = struct.pack("<IIII", 1, 0, 0, 7) + b"device\0"
    done = xenstore(tmp_path, "bin/xenstore-list", ["device"], listing, 1, b"vbd\0vif\0")
    assert (done.stdout, done.returncode) == ("vbd\nvif\n", 0)
    write = struct.pack("<IIII", 11, 0, 0, 9) + b"data/a\0xy"
    done = xenstore(tmp_path, "bin/xenstore-write", ["data/a", "xy"], write, 11, b"OK\0")
    assert (done.stdout, done.returncode) == ("", 0)
    done = xenstore(tmp_path, "bin/xenstore-read", ["x" * 255], b"", 2, b"")
    assert done.returncode == 2
    assert xenstore(tmp_path, "bin/xenstore-read", [], b"", 2, b"").returncode == 2


def test_the_prompt_is_what_the_profile_sets() -> None:
    prompt = re.search(r"PS1='(.*)'", PROFILE)
    assert prompt
    assert prompt[1].replace("\\w", "/") == PROMPT


def test_a_demo_with_the_users_own_kernel(tmp_path: Path, busybox: Path) -> None:
    kernel = tmp_path / "my-kernel"
    kernel.write_bytes(b"kernel")
    said: list[str] = []
    out = tmp_path / "new" / "demo"
    image = build_demo(out, kernel=kernel, busybox=busybox, memory_mib=64, say=said.append)
    assert image.kernel.read_bytes() == b"kernel"
    assert image.release == ""
    text = image.config.read_text()
    assert f'kernel = "{out}/vmlinuz"' in text
    assert f'ramdisk = "{out}/initrd.img"' in text
    assert "memory = 64\n" in text
    assert 'extra = "console=hvc0 ' in text
    assert said[-1] == f"start it with: xl create -c {image.config}"


def test_a_demo_with_debians_kernel(
    tmp_path: Path, busybox: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trees = {"linux-image-6.1.0-test": package_tree(tmp_path / "tree")}
    apt = Apt(tmp_path / "cache", silent)
    asked: list[str] = []

    def describe(name: str) -> dict[str, str]:
        asked.append(name)
        return {"Depends": "linux-image-6.1.0-test (= 6.1-1), other | more"}

    monkeypatch.setattr(apt, "describe", describe)
    monkeypatch.setattr(apt, "fetch_package", lambda name, refresh: trees[name])
    image = build_demo(tmp_path / "demo", busybox=busybox, apt=apt, say=silent)
    assert image.release == "6.1.0-test"
    assert image.kernel.read_bytes() == b"the kernel"
    entries = read(image.ramdisk.read_bytes())
    assert "lib/modules/6.1.0-test/xen_netfront.ko" in entries
    build_demo(tmp_path / "demo", busybox=busybox, apt=apt, say=silent)
    assert asked == [KERNEL_PACKAGES["cloud"]]  # the second demo needs no package lists
    build_demo(tmp_path / "demo", busybox=busybox, apt=apt, say=silent, refresh=True)
    assert len(asked) == 2


def test_what_cannot_be_made(tmp_path: Path, busybox: Path) -> None:
    with pytest.raises(UserError, match="no flavour"):
        build_demo(tmp_path, flavour="tiny", say=silent)
    with pytest.raises(UserError, match="quotes"):
        build_demo(tmp_path / 'a"b', kernel=busybox, busybox=busybox, say=silent)
    (tmp_path / "vmlinuz").write_bytes(b"k")
    build_demo(tmp_path, kernel=tmp_path / "vmlinuz", busybox=busybox, say=silent)
    assert (tmp_path / "vmlinuz").read_bytes() == b"k"
    with pytest.raises(UserError, match="Not a directory"):
        build_demo(tmp_path / "vmlinuz" / "x", kernel=busybox, busybox=busybox, say=silent)
