"""Disks as xend sees them: all of an attach or nothing, and what is remembered."""

import pytest
from test_xend_domains import gone, store
from xend_harness import config

from pyxen.errors import UserError


def disk(vdev="xvdb", target="/image", **more):
    return {"pdev_path": target, "vdev": vdev, "format": "raw", "readwrite": 1, **more}


def kept(host, domid):
    return host.record(domid)["config"].get("disks", [])


def traces(host, devid=51728):
    """What xenstore knows of a disk."""
    return [path for path in store(host) if str(devid) in path]


def test_disks_of_the_configuration(host):
    domid = host.create(paused=True, disks=[disk("xvda"), disk("xvdb", readwrite=0)])
    nodes = store(host)
    for devid, mode in ((51712, "w"), (51728, "r")):
        back = f"/local/domain/0/backend/vbd/{domid}/{devid}"
        assert nodes[f"{back}/mode"] == mode
        assert nodes[f"{back}/hotplug-status"] == "connected", "before the guest runs"
    host.call("unpause", domain=domid)
    host.call("destroy", domain=domid)
    assert gone(host, domid)
    assert traces(host) == []


@pytest.mark.parametrize(
    "disks",
    [
        [disk("xvda"), disk("xvdb", "/none")],
        [disk("xvda"), disk("51712")],
        [disk("xvda:cdrom")],
        [disk("xvda", "")],
        [disk("xvda", format="empty", pdev_path="")],
        [disk("xvda", backend_domname="storage")],
        [disk("xvda", script="block-iscsi")],
        [disk("xvda", specification="virtio")],
        [disk("xvda", colo_enable="True")],
        [disk("xvda", backend="tap")],
        [disk("xvda", backend="phy", format="qcow2")],
        [disk("xvda", format="floppy")],
        ["xvda"],
    ],
)
def test_a_domain_whose_disks_cannot_be_had_is_not_made(host, disks):
    with pytest.raises(UserError) as refused:
        host.create(disks=disks)
    assert refused.value.exit_code == 3
    assert host.records() == []
    assert not any("/local/domain/1" in path or "backend/vbd/" in path for path in store(host))


def test_attach_list_detach(host):
    domid = host.create()
    host.call("block_attach", domain=domid, disk=disk())
    (shown,) = host.call("block_list", domain=domid)
    back = f"/local/domain/0/backend/vbd/{domid}/51728"
    assert (shown["devid"], shown["state"], shown["backend"]) == (51728, 4, back)
    assert (shown["evtch"], shown["rref"]) == (-1, -1)
    assert kept(host, domid) == [disk()]
    with pytest.raises(UserError, match="already exists"):
        host.call("block_attach", domain=domid, disk=disk("51728"))
    host.call("block_detach", domain=domid, vdev="51728")
    assert (kept(host, domid), traces(host)) == ([], [])
    with pytest.raises(UserError, match="not connected"):
        host.call("block_detach", domain=domid, vdev="xvdb")


def test_an_attach_that_fails_leaves_nothing(host):
    domid = host.create(disks=[disk("xvda")])
    with pytest.raises(UserError, match="/none: No such file") as refused:
        host.call("block_attach", domain=domid, disk=disk(target="/none"))
    assert (refused.value.hint, refused.value.exit_code) == ("buy one", 1)
    assert (kept(host, domid), traces(host)) == ([disk("xvda")], [])


def test_a_guest_that_lets_nothing_go(host):
    domid = host.create(cmdline="busy")
    host.call("block_attach", domain=domid, disk=disk())
    with pytest.raises(UserError, match="did not let xvdb go"):
        host.call("block_detach", domain=domid, vdev="xvdb")
    assert kept(host, domid) == [disk()]
    host.call("block_detach", domain=domid, vdev="xvdb", force=True)
    assert (kept(host, domid), traces(host)) == ([], [])


def test_a_paused_guest(host):
    domid = host.create(paused=True)
    host.call("block_attach", domain=domid, disk=disk())
    assert host.call("block_list", domain=domid)[0]["state"] == 1
    host.call("block_detach", domain=domid, vdev="xvdb")
    host.call("block_attach", domain=domid, disk=disk())
    host.call("unpause", domain=domid)
    host.call("block_attach", domain=domid, disk=disk("xvdc"))
    host.call("pause", domain=domid)
    with pytest.raises(UserError, match="paused"):
        host.call("block_detach", domain=domid, vdev="xvdc")
    assert [d["vdev"] for d in kept(host, domid)] == ["xvdb", "xvdc"]


def test_media(host):
    drive = {"vdev": "xvdc", "format": "empty", "is_cdrom": 1, "removable": 1}
    domid = host.create(disks=[drive, disk()])
    back = f"/local/domain/0/backend/qdisk/{domid}/51744"

    def params():
        return store(host)[f"{back}/params"]

    assert params() == "aio:"
    host.call("cd_insert", domain=domid, vdev="xvdc", target="/a.iso")
    assert params() == "aio:/a.iso"
    with pytest.raises(UserError, match="none"):
        host.call("cd_insert", domain=domid, vdev="xvdc", target="/none.iso")
    assert params() == "aio:/a.iso"
    assert kept(host, domid)[0]["pdev_path"] == "/a.iso"
    host.call("cd_insert", domain=domid, vdev="xvdc", target="")
    assert params() == "aio:"
    with pytest.raises(UserError, match="not a CDROM"):
        host.call("cd_insert", domain=domid, vdev="xvdb", target="/a.iso")
    with pytest.raises(UserError, match="not connected"):
        host.call("cd_insert", domain=domid, vdev="xvdd", target="/a.iso")


def test_a_drive_that_is_not_in_the_next_configuration(host):
    drive = {"vdev": "xvdc", "format": "empty", "is_cdrom": 1, "removable": 1}
    domid = host.create(disks=[drive])
    host.call("config_update", domain=domid, config=config())
    host.call("cd_insert", domain=domid, vdev="xvdc", target="/a.iso")
    assert store(host)[f"/local/domain/0/backend/qdisk/{domid}/51744/params"] == "aio:/a.iso"
    assert kept(host, domid) == []
    with pytest.raises(UserError, match="floppy"):
        host.call("config_update", domain=domid, config=config(disks=[disk(format="floppy")]))


def test_xend_may_be_killed(host):
    domid = host.create()
    host.call("block_attach", domain=domid, disk=disk())
    host.kill()
    host.start()
    assert host.call("block_list", domain=domid)[0]["state"] == 4
    host.call("block_attach", domain=domid, disk=disk("xvdc"))
    host.call("block_detach", domain=domid, vdev="xvdb")
    assert [d["vdev"] for d in kept(host, domid)] == ["xvdc"]
