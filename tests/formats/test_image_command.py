"""`pyxen image create, convert, info, resize, check`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pyxen.cli.main import main
from tests.formats.conftest import FORMATS, World, content, create


def image(*arguments: str | Path) -> int:
    return main(["image", *map(str, arguments)])


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYXEN_HOME", str(tmp_path / "state"))


@pytest.mark.parametrize("image_format", FORMATS)
def test_create_info_convert(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], image_format: str
) -> None:
    raw, path = tmp_path / "raw", tmp_path / "disk"
    raw.write_bytes(b"pyxen!!!" * (1 << 17))
    assert image("create", "-f", image_format, path, "1M") == 0
    assert image("convert", "-O", image_format, raw, path) == 1
    assert "exists" in capfd.readouterr().err
    assert image("convert", "-O", image_format, "--force", raw, path) == 0
    assert image("info", "-f", image_format, "--json", path) == 0
    said = capfd.readouterr().out
    assert json.loads(said[said.index("{") :])["virtual-size"] >= 1 << 20
    assert content(path, image_format)[: 1 << 20] == raw.read_bytes()


def test_options(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    base, path = create(tmp_path / "base", "raw"), tmp_path / "disk"
    assert image("create", "-f", "qcow2", "-b", base, path) == 1
    assert "-F" in capfd.readouterr().err
    options = ["-f", "qcow2", "-o", "cluster_size=32k"]
    assert image("create", *options, "-b", base, "-F", "raw", path) == 0
    capfd.readouterr()
    assert image("info", "--backing-chain", "--json", path) == 0
    chain = json.loads(capfd.readouterr().out)
    assert [part["filename"] for part in chain] == [str(path), str(base)]
    assert chain[0]["cluster-size"] == 32768


def test_resize(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = create(tmp_path / "disk", "qcow2")
    assert image("resize", "-f", "qcow2", path, "32M") == 0
    assert image("resize", "-f", "qcow2", path, "8M") == 1
    assert "--shrink" in capfd.readouterr().err
    assert image("resize", "-f", "qcow2", "--shrink", path, "8M") == 0
    assert len(content(path, "qcow2")) == 8 << 20


def test_check(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = create(tmp_path / "disk", "qcow2")
    assert image("check", path) == 0
    with path.open("r+b") as file:
        file.seek(65536 * 2)  # the block of reference counts
        file.write(bytes(16))
    assert image("check", path) == 2
    assert image("check", "-r", "all", path) == 0
    assert image("check", path) == 0
    assert image("check", create(tmp_path / "raw", "raw")) == 1
    assert "pyxen image info" in capfd.readouterr().err


@pytest.mark.parametrize("image_format", ["raw", "qcow2"])
def test_an_image_in_use_is_not_touched(
    world: World, tmp_path: Path, capfd: pytest.CaptureFixture[str], image_format: str
) -> None:
    path, other = create(tmp_path / "disk", image_format), create(tmp_path / "other", "raw")
    storage = world.open(path, image_format)
    before = path.read_bytes()
    for arguments in (
        ("create", "-f", image_format, "--force", path, "1M"),
        ("convert", "-O", image_format, "--force", other, path),
        ("convert", "-f", image_format, path, tmp_path / "new"),
        ("resize", "-f", image_format, path, "+1M"),
        ("check", "-f", image_format, path),
    ):
        assert image(*arguments) == 1
        assert f"{path} is in use by" in capfd.readouterr().err
    assert path.read_bytes() == before
    assert not (tmp_path / "new").exists()
    assert image("info", "-f", image_format, path) == 0
    world.close(storage)
    assert image("resize", "-f", image_format, path, "+1M") == 0


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (("info", "nowhere"), "pyxen image create"),
        (("create", "-f", "qcow2", "new", "lots"), "10G"),
        (("create", "-f", "qcow2", "-o", "speed=9", "new", "1M"), "-o help"),
        (("convert", "-f", "qcow2", "raw", "new"), "pyxen image info"),
    ],
)
def test_hints(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    arguments: tuple[str, ...],
    hint: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    create(tmp_path / "raw", "raw")
    assert image(*arguments) == 1
    said = capfd.readouterr().err
    assert hint in said and "qemu-img:" not in said
    assert not (tmp_path / "new").exists()


def test_qemu_img_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert image("create", tmp_path / "new", "1M") == 1
    assert "apt install qemu-utils" in capfd.readouterr().err
