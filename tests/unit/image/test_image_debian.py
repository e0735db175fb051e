"""What makes a Debian guest of an archive of packages; the archive here is a small one."""

from __future__ import annotations

import fcntl
import io
import os
import re
import subprocess
import tarfile
from pathlib import Path

import pytest
from test_image_disk import debugfs

from pyxen.errors import UserError
from pyxen.image import bootstrap
from pyxen.image.bootstrap import Bootstrap, host_sources
from pyxen.image.debian import System, add_system, build_debian
from pyxen.image.partition import make_partitioned
from pyxen.image.staging import StagedTree

MIB = 1 << 20
UUID = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0"
SHADOW = "root:*:20000:0:99999:7:::\ndaemon:*:20000:0:99999:7:::\n"
CAPABILITY = bytes.fromhex("0100000200200000000000000000000000000000")
"""cap_net_raw=ep: a version 2 of Linux' vfs_cap_data."""


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """As mmdebstrap writes it: names begin with `./`."""
    path = tmp_path / "root.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:

        def add(name: str, data: bytes = b"", mode: int = 0o644, **fields: object) -> None:
            member = tarfile.TarInfo(f"./{name}")
            member.size, member.mode = len(data), mode
            for field, value in fields.items():
                setattr(member, field, value)
            tar.addfile(member, io.BytesIO(data))

        add("", mode=0o755, type=tarfile.DIRTYPE)
        for name in ("boot", "dev", "etc", "usr"):
            add(name, mode=0o755, type=tarfile.DIRTYPE)
        add("etc/shadow", SHADOW.encode(), 0o640, gid=42)
        add("etc/hostname", b"builder\n")
        add("usr/crontab", b"\x7fELF", 0o2755, gid=101)
        header = {"SCHILY.xattr.security.capability": CAPABILITY.decode(errors="surrogateescape")}
        add("usr/ping", b"\x7fELF", 0o755, pax_headers=header)
        add('usr/a "strange" name', b"", uid=7, gid=70000)
        add("dev/null", type=tarfile.CHRTYPE, devmajor=1, devminor=3)
        for release in ("6.1.0-9-cloud-amd64", "6.1.0-10-cloud-amd64"):
            add(f"boot/vmlinuz-{release}", b"kernel")
        add("boot/initrd.img-6.1.0-10-cloud-amd64", b"initrd")
    return path


@pytest.fixture
def tree(tmp_path: Path, archive: Path) -> StagedTree:
    tree = StagedTree(tmp_path / "root")
    tree.unpack(archive)
    return tree


def test_owners_and_capabilities_reach_the_disk(tmp_path: Path, tree: StagedTree) -> None:
    image = tmp_path / "disk"
    make_partitioned(image, tree.path, tree.owners(), 64 * MIB, uuid=UUID)
    assert f"Filesystem UUID:          {UUID}" in debugfs(image, "show_super_stats -h")
    for path, mode, owner in (
        ("/etc/shadow", "0640", "User:     0   Group:    42"),
        ("/usr/crontab", "02755", "User:     0   Group:   101"),
        ('"/usr/a ""strange"" name"', "0644", "User:     7   Group: 70000"),
    ):
        shown = debugfs(image, f"stat {path}")
        assert f"Mode:  {mode}" in shown
        assert owner in shown
    value = tmp_path / "value"
    debugfs(image, f"ea_get -f {value} /usr/ping security.capability")
    assert value.read_bytes() == CAPABILITY
    assert "null" not in debugfs(image, "ls -p /dev")


def test_a_file_that_is_missing_in_the_image_is_told(tmp_path: Path, tree: StagedTree) -> None:
    """debugfs ends with 0 all the same."""
    from pyxen.image import partition

    image = tmp_path / "disk"
    make_partitioned(image, tree.path, [], 64 * MIB)
    with pytest.raises(UserError, match="debugfs failed: /none: File not found"):
        partition._run_debugfs(image, "sif /none uid 5\n")


@pytest.mark.parametrize("autologin", [False, True])
def test_the_system_has_its_name_its_root_and_its_login(tree: StagedTree, autologin: bool) -> None:
    add_system(tree, System("guest7", "open sesame", autologin, UUID))
    etc = tree.path / "etc"
    assert (etc / "hostname").read_text() == "guest7\n"
    assert (etc / "fstab").read_text().startswith(f"UUID={UUID} / ext4 ")
    root, daemon = (etc / "shadow").read_text().splitlines()
    assert daemon == SHADOW.splitlines()[1]
    hashed = root.split(":")[1]
    script = "my ($word, $hash) = @ARGV; exit(crypt($word, $hash) ne $hash)"
    subprocess.run(["perl", "-e", script, "open sesame", hashed], check=True)
    wrong = subprocess.run(["perl", "-e", script, "open", hashed], check=False)
    assert wrong.returncode == 1
    drop_in = etc / "systemd/system/serial-getty@hvc0.service.d/autologin.conf"
    assert drop_in.exists() == autologin
    assert {(owner.path, owner.gid) for owner in tree.owners()} >= {
        ("etc/shadow", 42),
        ("boot/grub/grub.cfg", 0),
    }


def test_grub_cfg_has_the_newest_kernel_first(tree: StagedTree) -> None:
    before = os.umask(0o077)  # which is not the guest's
    add_system(tree, System("guest", "word", False, UUID))
    os.umask(before)
    assert (tree.path / "boot/grub/grub.cfg").stat().st_mode & 0o777 == 0o644
    text = (tree.path / "boot/grub/grub.cfg").read_text()
    linux = re.findall(r"^    linux (\S+) (.*)$", text, re.MULTILINE)
    assert [kernel for kernel, _ in linux[::2]] == [
        "/boot/vmlinuz-6.1.0-10-cloud-amd64",
        "/boot/vmlinuz-6.1.0-9-cloud-amd64",
    ]
    assert linux[0][1] == f"root=UUID={UUID} ro console=hvc0"
    assert linux[1][1].endswith(" single")
    assert text.count("initrd /boot/initrd.img-6.1.0-10-cloud-amd64") == 2
    assert "initrd.img-6.1.0-9" not in text


def test_grub_cfg_follows_the_kernels(tree: StagedTree) -> None:
    """As the hooks of kernel packages run it in the guest."""
    add_system(tree, System("guest", "word", False, UUID))
    (tree.path / "boot/vmlinuz-6.1.0-10-cloud-amd64").unlink()
    (tree.path / "etc/default/grub").write_text('GRUB_CMDLINE_LINUX="console=hvc0 quiet"\n')
    script = tree.path / "usr/local/sbin/write-grub-cfg"
    subprocess.run([script, tree.path], check=True)
    text = (tree.path / "boot/grub/grub.cfg").read_text()
    assert "6.1.0-10" not in text
    assert f"root=UUID={UUID} ro console=hvc0 quiet\n" in text
    assert 'timeout="3"' in text
    for when in ("postinst", "postrm"):
        hook = tree.path / f"etc/kernel/{when}.d/zz-write-grub-cfg"
        assert hook.stat().st_mode & 0o111
        assert "/usr/local/sbin/write-grub-cfg" in hook.read_text()


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"image_format": "vmdk"}, "no format 'vmdk'"),
        ({"size_mib": 100}, "100 MiB are too few"),
        ({"name": "a_b"}, "is not a host name"),
        ({"name": "-a"}, "is not a host name"),
        ({"password": "a:b"}, "password"),
        ({"password": "a\nb"}, "password"),
        ({"password": ""}, "password"),
        ({"bootstrap": Bootstrap("bookworm", ("no such",))}, "not the name of a package"),
    ],
)
def test_bad_settings_make_nothing(tmp_path: Path, settings: dict[str, object], why: str) -> None:
    with pytest.raises(UserError, match=why):
        build_debian(tmp_path / "out", **settings)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_without_mmdebstrap_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="there is no mmdebstrap") as refused:
        Bootstrap("bookworm", ("dash",), cache=tmp_path / "cache").archive(say=lambda _line: None)
    assert "apt-get install mmdebstrap" in refused.value.hint
    assert [path.name for path in (tmp_path / "cache/debian").iterdir()] == ["lock"]


def _program(directory: Path, name: str, script: str) -> None:
    path = directory / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


def test_a_failure_says_what_apt_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _program(tmp_path, "mmdebstrap", "echo half; echo 'E: no package' >&2; echo E: end >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match=r"mmdebstrap failed: no package$"):
        Bootstrap("bookworm", ("dash",), cache=tmp_path / "cache").archive(say=lambda _line: None)
    assert [path.name for path in (tmp_path / "cache/debian").iterdir()] == ["lock"]


def test_an_unknown_package_is_not_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path, "mmdebstrap", "echo 'E: Unable to locate package dasch' >&2; exit 1")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(UserError, match="Unable to locate package dasch") as refused:
        Bootstrap("bookworm", ("dasch",), cache=tmp_path / "cache").archive(say=lambda _line: None)
    assert "network" not in refused.value.hint


def test_the_archive_is_made_once_for_each_list_of_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _program(tmp_path, "mmdebstrap", 'echo "$@"')
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    said: list[str] = []

    def made(*packages: str, refresh: bool = False) -> Path:
        build = Bootstrap("bookworm", packages, "http://mirror.invalid/debian", tmp_path / "cache")
        return build.archive(refresh=refresh, say=said.append)

    first = made("dash", "gcc")
    assert "--include=dash,gcc bookworm - http://mirror.invalid/debian" in first.read_text()
    assert made("gcc", "dash") == first
    assert len(said) == 1
    assert made("dash") != first
    assert made("dash", "gcc", refresh=True) == first
    assert len(said) == 3


def test_a_whole_archive_is_had_while_another_is_made(tmp_path: Path) -> None:
    build = Bootstrap("bookworm", ("dash",), "http://mirror.invalid/debian", tmp_path)
    build.path().parent.mkdir()
    build.path().write_text("whole")
    with (tmp_path / "debian/lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert build.archive(say=lambda _line: None).read_text() == "whole"


def test_sources_are_those_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    known = (
        "http://one.invalid/debian/ bookworm main\n"
        "http://one.invalid/debian/ bookworm contrib\n"
        "http://two.invalid/security/ bookworm-security main\n"
        "http://one.invalid/debian/ trixie main\n"
        "file:/srv/local bookworm main\n"
        "http://three.invalid/apt stable main\n"
    )
    monkeypatch.setattr(bootstrap, "_ask", lambda *_command: known)
    assert host_sources("bookworm") == [
        "deb http://one.invalid/debian bookworm main",
        "deb http://one.invalid/debian bookworm contrib",
        "deb http://two.invalid/security bookworm-security main",
    ]
    assert host_sources("sid") == []
    assert host_sources("trixie") == ["deb http://one.invalid/debian trixie main"]
