"""Fetching packages, against stand-ins for apt that behave and misbehave."""

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from pyxen.errors import UserError
from pyxen.image.apt import Apt, cache_directory

CONTENT = b"a package"

# The stand-ins keep a protocol of how they were called in $FAKE/calls.
APT_CACHE = r"""#!/bin/sh
echo "apt-cache $*" >>"$FAKE/calls"
for name; do :; done
if [ -e "$FAKE/lists/$name" ]; then cat "$FAKE/lists/$name"; exit 0; fi
case "$*" in
*Dir::State*) [ -e "$FAKE/updated/$name" ] && cat "$FAKE/updated/$name" && exit 0 ;;
esac
exit 100
"""
APT_GET = r"""#!/bin/sh
echo "apt-get $*" >>"$FAKE/calls"
for word; do :; done
case "$*" in
*" update") touch "$FAKE/did-update"; exit 0 ;;
*" download "*)
    [ -e "$FAKE/mirror/$word" ] || { echo "E: 404 Not Found $word" >&2; exit 100; }
    cp "$FAKE/mirror/$word" "./${word%%=*}_1_amd64.deb" ;;
esac
"""
DPKG_DEB = r"""#!/bin/sh
[ "$1" = -x ] || exit 2
mkdir -p "$3/usr" && cp "$2" "$3/usr/file"
"""


class FakeApt:
    """A mirror and package lists in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("lists", "updated", "mirror", "bin"):
            (root / name).mkdir()
        (root / "calls").write_text("")

    def package(
        self, name: str, version: str, lists: str = "lists", content: bytes = CONTENT
    ) -> None:
        digest = hashlib.sha256(CONTENT).hexdigest()
        (self.root / lists / name).write_text(
            f"Package: {name}\nVersion: {version}\nSHA256: {digest}\n"
            f"Description: x\n more: lines\n\nPackage: other\nVersion: 9\n"
        )
        (self.root / "mirror" / f"{name}={version}").write_bytes(content)

    @property
    def calls(self) -> list[str]:
        return (self.root / "calls").read_text().splitlines()


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeApt:
    root = tmp_path / "fake"
    root.mkdir()
    fake = FakeApt(root)
    for name, text in (("apt-cache", APT_CACHE), ("apt-get", APT_GET), ("dpkg-deb", DPKG_DEB)):
        tool = root / "bin" / name
        tool.write_text(text)
        tool.chmod(0o755)
    monkeypatch.setenv("FAKE", str(root))
    monkeypatch.setenv("PATH", f"{root / 'bin'}:{os.environ['PATH']}")
    return fake


def silent(_line: str) -> None:
    pass


def test_a_known_package_is_unpacked_and_kept(fake: FakeApt, tmp_path: Path) -> None:
    fake.package("tool", "1.0-1")
    apt = Apt(tmp_path / "cache", silent)
    tree = apt.fetch_package("tool")
    assert (tree / "usr" / "file").read_bytes() == CONTENT
    count = len(fake.calls)
    assert apt.fetch_package("tool") == tree
    assert len(fake.calls) == count
    assert not any("update" in call for call in fake.calls)
    assert [p.name for p in (tmp_path / "cache").iterdir() if p.name.startswith("fetch")] == []


def test_refresh_fetches_a_newer_version_only(fake: FakeApt, tmp_path: Path) -> None:
    fake.package("tool", "1.0-1")
    apt = Apt(tmp_path / "cache", silent)
    apt.fetch_package("tool")
    apt.fetch_package("tool", refresh=True)
    assert sum("download" in call for call in fake.calls) == 1
    fake.package("tool", "1.0-2")
    apt.fetch_package("tool", refresh=True)
    assert sum("download" in call for call in fake.calls) == 2


def test_unknown_package_updates_private_lists(fake: FakeApt, tmp_path: Path) -> None:
    fake.package("tool", "2", lists="updated")
    said: list[str] = []
    Apt(tmp_path / "cache", said.append).fetch_package("tool")
    assert any("package lists" in line for line in said)
    update = next(call for call in fake.calls if call.endswith("update"))
    assert f"Dir::State={tmp_path}/cache/apt/state" in update
    with pytest.raises(UserError, match="no package other-tool"):
        Apt(tmp_path / "cache", silent).fetch_package("other-tool")


def test_old_lists_are_refreshed(fake: FakeApt, tmp_path: Path) -> None:
    """The list names a version that the mirror has dropped."""
    fake.package("tool", "1")
    (fake.root / "mirror" / "tool=1").unlink()
    apt = Apt(tmp_path / "cache", silent)
    with pytest.raises(UserError, match="could not be downloaded: E: 404"):
        apt.fetch_package("tool")
    assert (fake.root / "did-update").exists()


def test_a_damaged_download_is_refused(fake: FakeApt, tmp_path: Path) -> None:
    fake.package("tool", "1", content=b"something else")
    with pytest.raises(UserError, match="checksum"):
        Apt(tmp_path / "cache", silent).fetch_package("tool")
    assert not (tmp_path / "cache" / "trees" / "tool").exists()


@pytest.mark.parametrize("name", ["", "-o", "../x", "a b", "tool=1", "a;b"])
def test_odd_names_reach_no_tool(fake: FakeApt, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="not the name of a package"):
        Apt(tmp_path / "cache", silent).fetch_package(name)
    assert fake.calls == []


def test_without_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="apt-get is not installed"):
        Apt(tmp_path / "cache", silent).fetch_package("tool")


def test_a_tool_that_hangs(fake: FakeApt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(*args: object, **kwargs: object) -> None:
        raise subprocess.TimeoutExpired("apt-cache", 60)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(UserError, match="did not finish"):
        Apt(tmp_path / "cache", silent).fetch_package("tool")


def test_the_cache_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_directory() == tmp_path / "pyxen"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative/ignored")
    monkeypatch.setenv("HOME", "/home/u")
    assert cache_directory() == Path("/home/u/.cache/pyxen")
