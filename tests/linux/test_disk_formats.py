"""A disk of qcow2 end to end: xl, Debian's xen-blkfront, and nobody else on the image."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
from pathlib import Path

from pyxen.backend.blk.storage.locks import holders
from tests.linux.host import PROMPT, Host, wait_until, write_config


def test_qcow2(tmp_path: Path, host: Host, config: Path) -> None:
    image = tmp_path / "disk.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", image, "64M"], check=True)
    with config.open("a") as file:
        file.write(f"disk = ['{image},qcow2,xvda,rw']\n")
    console = host.session("create", "-c", str(config))
    console.expect(PROMPT)
    wait_until(lambda: "xvda" in console.run("cat /proc/partitions").split())
    console.run("head -c 9000000 /dev/urandom >/tmp/d; dd if=/tmp/d of=/dev/xvda bs=64k conv=fsync")
    sent = console.run("md5sum /tmp/d").split()[0]
    assert console.run("head -c 9000000 /dev/xvda | md5sum").split()[0] == sent

    other = write_config(tmp_path / "other.cfg", name="other", kernel="/none", memory=128)
    other.write_text(config.read_text().replace('"guest"', '"other"').replace("'guest'", "'other'"))
    refused = host.xl("create", str(other), check=False)
    assert refused.returncode == 3
    assert "is in use by domain guest" in refused.stderr + refused.stdout
    assert [row[0] for row in host.list()] == ["guest"]

    # A daemon that dies when everything is flushed is replaced, and the guest sees nothing of it.
    (daemon,) = holders(image)
    os.kill(daemon.pid, signal.SIGKILL)
    console.run("echo 3 >/proc/sys/vm/drop_caches")
    assert console.run("head -c 9000000 /dev/xvda | md5sum").split()[0] == sent

    console.type("poweroff\n")
    console.end()
    wait_until(lambda: host.list() == [])
    assert list(holders(image)) == []
    flat = tmp_path / "flat"
    subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", image, flat], check=True)
    assert hashlib.md5(flat.read_bytes()[:9000000]).hexdigest() == sent
