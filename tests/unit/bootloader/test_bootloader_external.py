"""Programs with libxl's boot loader protocol, the private directory, and what boot.py checks."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pyxen.bootloader.boot import booted
from pyxen.errors import UserError


def program(tmp_path: Path, body: str) -> str:
    path = tmp_path / "loader"
    path.write_text(
        "#!/bin/sh\n"
        'for word; do case "$word" in\n'
        "--output=*) out=${word#--output=};; --output-directory=*) dir=${word#*=};;\n"
        f"esac; done\n{body}\n"
    )
    path.chmod(0o755)
    return str(path)


def config(tmp_path: Path, loader: str, **b_info: Any) -> dict[str, Any]:
    (tmp_path / "disk").write_bytes(b"disk")
    return {
        "c_info": {"name": "g"},
        "b_info": {"bootloader": loader, **b_info},
        "disks": [{"pdev_path": str(tmp_path / "disk"), "format": "raw"}],
    }


def test_the_protocol(tmp_path: Path) -> None:
    loader = program(
        tmp_path,
        f'echo "$TERM:$#:$*" > {tmp_path}/called; tty >> {tmp_path}/called; echo hello\n'
        "echo k > $dir/k; echo r > $dir/r\n"
        'printf "kernel $dir/k\\0ramdisk $dir/r\\0args a  b\\0unknown\\0" > $out',
    )
    given = config(tmp_path, loader, kernel="/k", cmdline="x y", bootloader_args=["--mine", "-q"])
    run, log = tmp_path / "run", tmp_path / "logs" / "bootloader.log"
    with booted(given, run, log) as found:
        assert Path(found.kernel).read_text() == "k\n"
        assert found.ramdisk is not None and Path(found.ramdisk).read_text() == "r\n"
        assert found.args == "a  b"
        assert oct(next(run.iterdir()).stat().st_mode & 0o777) == "0o700"
    assert list(run.iterdir()) == []
    called, terminal = (tmp_path / "called").read_text().splitlines()
    assert called.startswith("vt100:8:--kernel=/k --args=x y --output=")
    words = called.partition("--output=")[2].split()
    assert words[1] == "--output-format=simple0"
    assert words[2].startswith("--output-directory=")
    assert words[3:] == ["--mine", "-q", str(tmp_path / "disk")]
    assert terminal.startswith("/dev/pts/")
    assert b"hello" in log.read_bytes()


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ("echo oh no; exit 7", "bootloader failed (exit code 7) - consult logfile"),
        ("kill -9 $$", "bootloader failed (signal 9)"),
        ("true", "named no kernel"),
        ("rm $out", "output is gone"),
        ("head -c 100000 /dev/zero | tr '\\0' x > $out", "named no kernel"),
    ],
)
def test_programs_that_fail(body: str, says: str, tmp_path: Path) -> None:
    given = config(tmp_path, program(tmp_path, body))
    with pytest.raises(UserError) as caught, booted(given, tmp_path / "run", tmp_path / "log"):
        pass
    assert says in caught.value.message
    assert caught.value.exit_code == 3
    assert "oh no" in caught.value.hint or "oh no" not in body
    assert list((tmp_path / "run").iterdir()) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"disks": []}, "cannot run bootloader with no boot disk"),
        ({"disks": [{"vdev": "xvda"}]}, "cannot run bootloader with no boot disk"),
        ({"disks": [{"pdev_path": "/x", "format": "qcow2"}]}, "can read raw disks only"),
        ({"b_info": {"bootloader": "no-such-loader"}}, "no-such-loader is not there"),
        ({"b_info": {"bootloader": "/etc"}}, "/etc is not there, or is no program"),
        ({"b_info": {"bootloader": "pygrub", "bootloader_args": ["--nonsense"]}}, "nonsense"),
        ({"b_info": {"bootloader": "pygrub"}}, "there is no boot configuration"),
    ],
)
def test_what_is_refused(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    given = {**config(tmp_path, program(tmp_path, "true")), **change}
    with pytest.raises(UserError) as caught, booted(given, tmp_path / "run", tmp_path / "log"):
        pass
    assert says in caught.value.message
    assert caught.value.exit_code == 3
    assert list((tmp_path / "run").iterdir()) == []


def test_what_a_killed_process_left_is_removed_and_what_is_used_is_not(tmp_path: Path) -> None:
    loader = program(tmp_path, 'echo k > $dir/k; printf "kernel $dir/k\\0" > $out')
    given, run = config(tmp_path, loader), tmp_path / "run"
    (run / "bootloader.left").mkdir(parents=True)
    (run / "bootloader.left" / "boot_kernel.x").touch()
    log = tmp_path / "log"
    with booted(given, run, log) as first, booted(given, run, log) as second:
        assert os.path.exists(first.kernel) and os.path.exists(second.kernel)
        assert not (run / "bootloader.left").exists()
