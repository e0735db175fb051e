"""The life of a virtual disk in xenstore: a real store, a real image, a front end by hand."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[1] / "xenstored"))
sys.path.append(str(Path(__file__).parents[1] / "hypervisor"))

from pv_guest import PvGuest
from xenstore_client import Client, make_guest

from pyxen.abi.event_channel import EvtchnAllocUnbound, EVTCHNOP_alloc_unbound
from pyxen.abi.xen import DOMID_SELF
from pyxen.backend.blk import xenbus
from pyxen.backend.blk.device import BlockDevice
from pyxen.backend.blk.storage.base import Storage
from pyxen.backend.blk.storage.open import Image
from pyxen.backend.blk.storage.raw import open_raw
from pyxen.backend.blk.storage.workers import Completions, Workers
from pyxen.backend.blk.xenbus import MAX_QUEUES, DiskBackend, DiskHost
from pyxen.backend.xenbus import REPORTS, XenBus
from pyxen.hypervisor.evtchn.channel import ChannelKind
from pyxen.memory.machine import XEN_PAGES
from pyxen.proto.xs_client import XsClient
from pyxen.types import DomId, GrantRef, Port
from pyxen.xenstored.connection import Connection
from pyxen.xenstored.daemon import Xenstore
from pyxen.xenstored.outbox import Outbox
from pyxen.xenstored.permissions import DOM0

DOMID = 7
DEVID = 51712
BACK = f"/local/domain/0/backend/vbd/{DOMID}/{DEVID}"
FRONT = f"/local/domain/{DOMID}/device/vbd/{DEVID}"
MIB = 1 << 20
RING_GREF, RING_PFN = 8, 40


class Disk:
    """A domain with back ends, and a store whose stream can be cut."""

    def __init__(self, directory: Path) -> None:
        self.image = directory / "disk.img"
        self.image.write_bytes(bytes(MIB))
        self.guest = PvGuest()
        self.completions = Completions()
        self.workers = Workers(self.completions)
        self.reports: list[str] = []
        self.opened: list[Storage] = []
        self.new_store()
        self.store = XsClient()
        host = DiskHost(self.guest.domain, self.open, self.completions.post)
        disk = ("vbd", partial(DiskBackend, host))
        kinds = {"vbd": disk, "qdisk": disk}
        self.bus = XenBus(self.store, DomId(DOMID), kinds, self.reports.append)
        self.connect()

    def open(self, image: Image, name: str, report: object) -> Storage:
        assert name == str(DEVID)
        self.opened.append(open_raw(Path(image.target), self.workers, read_only=image.read_only))
        return self.opened[-1]

    def new_store(self) -> None:
        self.xenstore = Xenstore()
        self.dom0 = Client(self.xenstore)
        self.front = make_guest(self.xenstore, self.dom0, DOMID)

    def connect(self, *, pump: bool = True) -> None:
        """A stream between the client and the store; moved by `pump`."""
        self.to_client: list[bytes] = []
        self.to_store: list[bytes] = []
        self.link = Connection(self.xenstore, DOM0, Outbox(self.to_client.append))
        self.send = self.to_store.append
        self.store.connect(self.send)
        if pump:
            self.pump()

    def cut(self) -> None:
        self.store.disconnect(self.send)
        self.link.close()

    def pump(self, requests: int = 1_000_000) -> None:
        """Until nothing moves any more, or so many requests went to the store."""
        while requests and (self.to_store or self.to_client):
            if self.to_store:
                self.link.receive(self.to_store.pop(0))
                requests -= 1
            while self.to_client:
                self.store.received(self.to_client.pop(0))
            self.finish_io()

    def finish_io(self) -> None:
        """Flushes run on workers."""
        while any(storage._under_way for storage in self.opened):  # type: ignore[attr-defined]
            self.completions.wait()
        self.completions.drain()

    # --- the tool stack -----------------------------------------------------------------------

    def attach(self, params: str | None = None, *, kind: str = "vbd", **nodes: str) -> None:
        back = BACK.replace("/vbd/", f"/{kind}/")
        for path, perms in ((back, ("n0", f"r{DOMID}")), (FRONT, (f"n{DOMID}", "r0"))):
            self.dom0.write(path)
            self.dom0.chmod(path, *perms)
        own = {"frontend": FRONT, "online": "1", "mode": "w", "device-type": "disk"}
        own |= {"params": params or str(self.image), **nodes}
        for key, value in own.items():
            self.dom0.write(f"{back}/{key.replace('_', '-')}", value)
        self.dom0.write(f"{FRONT}/state", "1")
        self.dom0.write(f"{back}/state", "1")
        self.pump()

    def detach(self) -> None:
        self.dom0.write(f"{BACK}/online", "0")
        self.dom0.write(f"{BACK}/state", "5")
        self.pump()

    def get(self, key: str, back: str = BACK) -> str:
        return self.dom0.read(f"{back}/{key}").decode()

    # --- the front end ------------------------------------------------------------------------

    def say(self, **nodes: int | str) -> None:
        """The front end writes; the state last."""
        for key, value in nodes.items():
            self.front.write(f"{FRONT}/{key.replace('_', '-')}", str(value))
        self.pump()

    def port(self) -> int:
        op = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=0)
        return int(self.guest.op("event_channel_op", EVTCHNOP_alloc_unbound, op)[1].port)

    def ring(self, gref: int = RING_GREF) -> int:
        self.guest.domain.grants.grow(1)
        pfn = RING_PFN + gref - RING_GREF
        self.guest.domain.grants.seed(GrantRef(gref), DomId(0), XEN_PAGES + pfn)
        return gref

    def use(self, **more: int | str) -> Port:
        """Connect as xen-blkfront does; the port."""
        port = self.port()
        self.say(ring_ref=self.ring(), event_channel=port, protocol="x86_64-abi", **more, state=3)
        return Port(port)

    def kind_of(self, port: int) -> ChannelKind:
        return self.guest.domain.events.channel(port).kind

    def close(self) -> None:
        self.bus.close()
        self.workers.close()
        self.completions.close()
        self.guest.close()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    made = Disk(tmp_path)
    yield made
    made.close()
    assert made.guest.domain.grants.uses == {}, "all pages are given back"


def is_open(image: Path) -> bool:
    return any(Path(fd).resolve() == image for fd in Path("/proc/self/fd").iterdir())


def test_from_attach_to_detach(disk: Disk) -> None:
    disk.attach()
    assert (disk.get("state"), disk.get("hotplug-status")) == ("2", "connected")
    assert disk.get("max-ring-page-order") == "4"
    port = disk.use(feature_persistent=1)
    assert disk.get("state") == "4"
    assert disk.kind_of(port) is ChannelKind.INTERDOMAIN
    wanted = {"sectors": "2048", "info": "0", "sector-size": "512", "feature-flush-cache": "1"}
    assert {key: disk.get(key) for key in wanted} == wanted
    disk.say(state=4)
    disk.detach()
    assert disk.get("state") == "5", "the front end has not let it go"
    assert is_open(disk.image)
    disk.say(state=6)
    assert disk.get("state") == "6"
    assert not is_open(disk.image)
    assert disk.kind_of(port) is ChannelKind.UNBOUND
    assert disk.guest.domain.grants.uses == {}
    disk.dom0.rm(BACK)
    disk.pump()
    disk.attach()
    assert disk.get("state") == "2", "the number can be used again"


def test_a_front_end_that_never_connected(disk: Disk) -> None:
    disk.attach()
    disk.detach()
    assert disk.get("state") == "6"
    assert not is_open(disk.image)


def test_a_front_end_that_comes_back(disk: Disk) -> None:
    disk.attach()
    disk.use()
    disk.say(state=5)
    assert disk.get("state") == "5"
    disk.say(state=6)
    assert disk.get("state") == "6"
    assert is_open(disk.image), "it is online"
    disk.say(state=1)
    assert disk.get("state") == "2"
    disk.use()
    assert disk.get("state") == "4"


def test_by_force(disk: Disk) -> None:
    disk.attach()
    port = disk.use()
    disk.dom0.rm(FRONT)
    disk.detach()
    assert disk.get("state") == "6"
    assert not is_open(disk.image)
    assert disk.kind_of(port) is ChannelKind.UNBOUND


def test_nodes_that_vanish(disk: Disk) -> None:
    disk.attach()
    disk.use()
    disk.dom0.rm("/local/domain/0/backend/vbd")
    disk.pump()
    assert not is_open(disk.image)
    assert disk.dom0.ls("/local/domain/0/backend") == [], "nothing is written late"


def test_an_image_that_is_not_there(disk: Disk) -> None:
    disk.attach(f"{disk.image}.none")
    assert (disk.get("state"), disk.get("hotplug-status")) == ("1", "error")
    assert f"{disk.image}.none" in disk.get("hotplug-error")


def test_read_only(disk: Disk) -> None:
    disk.attach(mode="r", device_type="cdrom")
    disk.use()
    wanted = {"info": "5", "feature-flush-cache": "0", "feature-barrier": "0"}
    assert {key: disk.get(key) for key in wanted} == wanted
    assert "feature-discard" not in disk.dom0.ls(BACK)


def test_a_medium_comes_and_goes(disk: Disk) -> None:
    back = BACK.replace("/vbd/", "/qdisk/")
    disk.attach("aio:", kind="qdisk", mode="r", device_type="cdrom")
    disk.use()
    assert disk.get("sectors", back) == "0"
    disk.dom0.write(f"{back}/params", f"aio:{disk.image}")
    disk.pump()
    assert (disk.get("sectors", back), disk.get("state", back)) == ("2048", "4")
    disk.dom0.write(f"{back}/params", f"aio:{disk.image}.none")
    disk.pump()
    assert disk.get("hotplug-status", back) == "error"
    disk.dom0.write(f"{back}/params", "aio:")
    disk.pump()
    assert disk.get("sectors", back) == "0"
    assert not is_open(disk.image)


def test_grants_are_kept_if_both_ends_say_so(disk: Disk, monkeypatch: pytest.MonkeyPatch) -> None:
    agreed: list[bool] = []

    def device(*arguments: Any) -> BlockDevice:
        agreed.append(arguments[3].persistent)
        return BlockDevice(*arguments)

    monkeypatch.setattr(xenbus, "BlockDevice", device)
    for ours, theirs in ((True, 0), (False, 1), (True, 1)):
        monkeypatch.setattr(xenbus, "PERSISTENT", ours)
        disk.attach()
        disk.use(feature_persistent=theirs)
        assert disk.get("feature-persistent") == str(int(ours))
        disk.detach()
        disk.say(state=6)
        disk.dom0.rm(BACK)
        disk.pump()
    assert agreed == [False, False, True]


def test_kicks_until_the_back_end_looks_are_one(disk: Disk) -> None:
    disk.attach()
    port = disk.use()
    looked: list[int] = []
    (back,) = disk.bus._devices.values()
    assert isinstance(back, DiskBackend)
    assert back._device is not None
    back._device.notified = looked.append  # type: ignore[method-assign]
    for _ in range(3):
        disk.guest.domain.events.send(port)
    assert looked == []
    disk.guest.domain.run_soon()
    assert looked == [0]
    disk.guest.domain.events.send(port)
    disk.bus.close()
    disk.guest.domain.run_soon()
    assert looked == [0], "the device is gone, its requests stay in the ring"


def test_an_image_that_grows(disk: Disk) -> None:
    disk.attach()
    port = disk.use()
    with open(disk.image, "ab") as file:
        file.truncate(2 * MIB)
    disk.guest.domain.events.send(port)
    disk.guest.domain.run_soon()
    disk.pump()
    assert disk.get("sectors") == "4096"


BAD = {
    "no ring": {"ring_ref": ""},
    "no number": {"ring_ref": "8 "},
    "a negative ring": {"ring_ref": "-1"},
    "not granted": {"ring_ref": 5000},
    "no port": {"event_channel": ""},
    "a port that is not open": {"event_channel": 99},
    "no protocol": {"protocol": "x86_16-abi"},
    "no queue": {"multi_queue_num_queues": 0},
    "too many queues": {"multi_queue_num_queues": MAX_QUEUES + 1},
    "a large ring": {"ring_page_order": 5},
    "a ring whose pages are missing": {"ring_page_order": 1},
    "a very large number": {"multi_queue_num_queues": "9" * 900},
}


@pytest.mark.parametrize("said", BAD.values(), ids=BAD)
def test_what_a_front_end_says_is_checked(disk: Disk, said: dict[str, int | str]) -> None:
    disk.attach()
    port = disk.port()
    good = {"ring_ref": disk.ring(), "event_channel": port, "protocol": "x86_64-abi"}
    disk.say(**{**good, **said}, state=3)
    assert disk.get("state") == "5"
    assert disk.kind_of(port) is ChannelKind.UNBOUND
    assert disk.guest.domain.grants.uses == {}
    assert len(disk.reports) == 1
    disk.say(state=6)
    disk.say(state=1)
    assert disk.get("state") == "2"


def test_several_queues_with_large_rings(disk: Disk) -> None:
    disk.attach()
    ports = [disk.port(), disk.port()]
    said: dict[str, int | str] = {"multi-queue-num-queues": 2, "ring-page-order": 1}
    for queue, port in enumerate(ports):
        said[f"queue-{queue}/event-channel"] = port
        for page in range(2):
            said[f"queue-{queue}/ring-ref{page}"] = disk.ring(RING_GREF + 2 * queue + page)
    disk.say(**said, state=3)
    assert disk.get("state") == "4"
    assert [disk.kind_of(port) for port in ports] == [ChannelKind.INTERDOMAIN] * 2


def test_a_guest_that_makes_mistakes_without_end(disk: Disk) -> None:
    disk.attach()
    for _ in range(2 * REPORTS):
        disk.say(state=3)
        disk.say(state=6)
        disk.say(state=1)
    assert len(disk.reports) == REPORTS
    assert disk.guest.domain.events.free_port() == 1, "and no port is in use"


def test_ports_do_not_pile_up(disk: Disk) -> None:
    """A guest that connects, closes its port and disconnects leaves no end behind."""
    disk.attach()
    for _ in range(5):
        port = disk.use()
        disk.guest.domain.events.close(port)
        disk.say(state=6)
        disk.say(state=1)
    assert disk.guest.domain.events._host_ends == {}


@pytest.mark.parametrize("requests", range(1, 40, 3))
def test_a_store_that_goes_away_at_any_time(disk: Disk, requests: int) -> None:
    """The stream breaks after so many requests; the journal keeps what was done."""
    disk.cut()
    disk.attach()
    disk.connect(pump=False)
    port = disk.port()
    for key, value in {"ring-ref": disk.ring(), "event-channel": port, "state": 3}.items():
        disk.front.write(f"{FRONT}/{key}", str(value))
    disk.pump(requests)
    disk.cut()
    disk.connect()
    assert disk.get("state") == "4"
    assert disk.get("sectors") == "2048"
    assert disk.kind_of(port) is ChannelKind.INTERDOMAIN
    disk.say(state=6)
    disk.detach()
    assert disk.get("state") == "6"
    assert not is_open(disk.image)
