"""The back ends that a domain gets by xenstore, and what they share: a store, workers, images."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from pyxen.backend.blk.storage.base import Storage
from pyxen.backend.blk.storage.open import Host, Image, open_storage
from pyxen.backend.blk.storage.workers import Completions, Workers
from pyxen.backend.blk.xenbus import DiskBackend, DiskHost
from pyxen.backend.xenbus import XenBus
from pyxen.domain.reactor import Reactor
from pyxen.hypervisor.domain import Domain
from pyxen.paths import Paths
from pyxen.proto.xs_client import XsClient


class Devices:
    """Every device but console and xenstore, which have no life in xenstore.

    `store` is domain 0's client of xenstore; xend connects it to its xenstored.
    """

    def __init__(self, domain: Domain, reactor: Reactor, paths: Paths) -> None:
        """paths: of the xend that the domain belongs to."""
        self._run_dir = paths.domain_run(domain.domid)
        self._paths = paths
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

    def _open(self, image: Image, name: str, report: Callable[[str], None]) -> Storage:
        host = Host(self._reactor, self._workers, self._run_dir, name, report, self._paths)
        return open_storage(image, host)
