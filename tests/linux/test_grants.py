"""Linux with both versions of the grant table. It takes version 1 unless it is told otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from pyxen.image.demo import DemoImage
from tests.linux.host import PROMPT, Host, write_config


@pytest.mark.parametrize("version", [1, 2])
def test_grant_table_version(host: Host, tmp_path: Path, demo: DemoImage, version: int) -> None:
    config = write_config(
        tmp_path / "grants.cfg",
        name="grants",
        kernel=demo.kernel,
        ramdisk=demo.ramdisk,
        extra=f"console=hvc0 lockdown=confidentiality grant_table.version={version}",
        memory=128,
    )
    guest = host.session("create", "-c", str(config))
    guest.expect(PROMPT)
    said = guest.run("dmesg | grep 'Grant tables using'")
    assert f"version {version} layout" in said
    assert guest.run("echo $((40 + 2))") == "42"
