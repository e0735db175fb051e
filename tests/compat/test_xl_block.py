"""Disks against real xl 4.17: columns, the dry run, the nodes in xenstore.

golden/xl_block.jsonl: a PV guest's disks.
"""

import json
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit" / "xend"))

from xend_harness import Host, config  # noqa: E402

from pyxen.config.disk import parse_disk  # noqa: E402
from pyxen.config.json_output import to_plain  # noqa: E402
from pyxen.toolstack.disk_plan import plan_disk  # noqa: E402
from pyxen.xl.block import HEADER, disk_line  # noqa: E402
from pyxen.xl.main import main  # noqa: E402

CASES = {
    case["name"]: case
    for case in map(json.loads, (HERE / "golden" / "xl_block.jsonl").read_text().splitlines())
}
LISTS = [name for name in CASES if "block-list" in name]


@pytest.mark.parametrize("name", LISTS)
def test_lines_of_block_list(name):
    header, *lines = CASES[name]["out"].splitlines()
    assert header == HEADER
    for line in lines:
        devid, _, domid, state, evtch, rref, backend = line.split()
        disk = {
            "devid": int(devid),
            "frontend_id": int(domid),
            "state": int(state),
            "evtch": int(evtch),
            "rref": int(rref),
            "backend": backend,
        }
        assert disk_line(disk) == line


@pytest.fixture(scope="module")
def guest(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("block") / "h").start()
    host.call("create", config=config("pv1"), paused=True)
    yield host
    host.close()


@pytest.mark.parametrize("name", ["life/block-attach-n", "life/block-attach-badspec"])
def test_block_attach_without_attaching(name, guest, monkeypatch, capsys):
    monkeypatch.setenv("PYXEN_HOME", str(guest.home))
    words = [word.replace("\\", "") for word in CASES[name]["cmd"].split()[1:]]
    assert main(words) == CASES[name]["rc"]
    assert capsys.readouterr().out == CASES[name]["out"]


WRITTEN_LATER = re.compile(
    r"/(event-channel|ring-ref|feature-[a-z-]+|discard-[agsb][a-z]+|hotplug-status|info|sectors"
    r"|max-ring-page-order|multi-queue-max-queues|(physical-)?sector-size)$"
)
"""By the two ends, when they connect."""
OF_THE_SCRIPT = re.compile(r"/(script|node|physical-device|physical-device-path)$")
"""Xen's block script makes a loop device; here there is none."""


def nodes(name, *, devid, domid):
    """{path: value} of one disk in a golden listing, as they are before the guest looks."""
    found = {}
    for line in CASES[name]["out"].splitlines():
        path, value = re.match(r'(\S+) = "(.*?)"', line).groups()
        if f"/{devid}/" in path and not WRITTEN_LATER.search(path):
            found[path] = "1" if path.endswith("/state") else value
    return {path: value for path, value in found.items() if not OF_THE_SCRIPT.search(path)}


def planned(words, domid):
    """The same as we write them."""
    plan = plan_disk(to_plain(parse_disk(words)))
    ours = {"backend": plan.back(domid), **plan.back_nodes(domid)}
    directories = {
        plan.back(domid): plan.back_nodes(domid),
        f"/local/domain/{domid}/device/vbd/{plan.devid}": plan.front_nodes(domid),
        f"/libxl/{domid}/device/vbd/{plan.devid}": ours,
    }
    return {f"{d}/{key}": value for d, pairs in directories.items() for key, value in pairs.items()}


def test_the_nodes_of_a_disk():
    wanted = nodes("life/disk-nodes", devid=51712, domid=4)
    assert planned(["/root/pygrub.img,raw,xvda,rw"], 4) == wanted


@pytest.mark.parametrize(
    ("words", "devid", "name"),
    [
        ("vdev=xvdq,access=ro,target=/root/data.img", 268439552, "life/xs-backend-qdisk"),
        ("/root/data.qcow2,qcow2,xvdc,rw", 51744, "life/xs-backend-qdisk"),
    ],
)
def test_the_nodes_of_a_back_end(words, devid, name):
    wanted = nodes(name, devid=devid, domid=4)
    found = planned([words], 4)
    assert {path: value for path, value in found.items() if "/backend/" in path} == wanted
