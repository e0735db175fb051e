"""The back ends that a domain gets by xenstore, and what they share: a store, workers, images."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from pyxen.backend.blk.storage.base import Storage
from pyxen.backend.blk.storage.raw import open_raw
from pyxen.backend.blk.storage.workers import Completions, Workers
from pyxen.backend.blk.xenbus import DiskBackend, DiskHost, DiskImage
from pyxen.backend.xenbus import XenBus
from pyxen.domain.reactor import Reactor
from pyxen.errors import UserError
from pyxen.hypervisor.domain import Domain
from pyxen.proto.xs_client import XsClient


class Devices:
    """Every device but console and xenstore, which have no life in xenstore.

    `store` is domain 0's client of xenstore; xend connects it to its xenstored.
    """

    def __init__(self, domain: Domain, reactor: Reactor) -> None:
        self._reactor = reactor
        self._completions = Completions()
        self._workers = Workers(self._completions)
        reactor.add(self._completions.fileno(), lambda _: self._completions.drain())
        self.store = XsClient()
        host = DiskHost(domain, self._open, self._completions.post)
        disk = ("vbd", partial(DiskBackend, host))
        self._bus = XenBus(
            self.store,
            domain.domid,
            {"vbd": disk, "qdisk": disk},
            lambda line: domain.on_log(line),
        )

    def close(self) -> None:
        """The domain ends: what guests wrote is flushed, images are closed."""
        self._bus.close()
        self._workers.close()
        self._reactor.remove(self._completions.fileno())
        self._completions.close()

    def _open(self, image: DiskImage) -> Storage:
        if image.format != "raw":
            raise UserError(f"disk {image.path}: no images of format {image.format}")
        return open_raw(
            Path(image.path), self._workers, read_only=image.read_only, direct=image.direct
        )
