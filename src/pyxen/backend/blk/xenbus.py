"""A virtual disk in xenstore: what the back end says of it, and what it reads of the front end.

Source: public/io/blkif.h, "Backend XenBus Nodes" and "Frontend XenBus Nodes".
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

from pyxen.abi.io.blkif import VDISK_CDROM, VDISK_READONLY
from pyxen.backend.blk.device import BlockDevice, RingSettings
from pyxen.backend.blk.request import ABIS
from pyxen.backend.blk.ring import MAX_RING_PAGE_ORDER
from pyxen.backend.blk.storage.base import Kind, Operation, Storage
from pyxen.backend.blk.storage.open import Image
from pyxen.backend.xenbus import Backend, FrontEndError, XenBus
from pyxen.errors import UserError, XenError
from pyxen.hypervisor.domain import Domain
from pyxen.proto.xs_client import Pause
from pyxen.types import Port

SECTOR_BYTES: Final = 512
MAX_QUEUES: Final = 4
MAX_INDIRECT_SEGMENTS: Final = 256
PERSISTENT: Final[bool] = True
"""What we say in feature-persistent. Grants are kept only if the front end says so, too."""

Opener = Callable[[Image, str, Callable[[str], None]], Storage]
"""Opens an image of a disk of this name, which reports by this function. Raises: UserError."""


@dataclass(frozen=True, slots=True)
class DiskHost:
    """What all disks of a domain share. defer: as BlockDevice has it."""

    domain: Domain
    opener: Opener
    defer: Callable[[Callable[[], None]], None]


class DiskBackend(Backend):
    """One virtual disk, of the kinds vbd and qdisk: here they are the same, but for `params`."""

    def __init__(self, host: DiskHost, bus: XenBus, path: str, front: str) -> None:
        super().__init__(bus, path, front)
        self._host = host
        self._is_qdisk = "/backend/qdisk/" in path
        self._image: Image | None = None
        self._refused: Image | None = None
        """What cannot be opened, though it is wanted."""
        self._storage: Storage | None = None
        self._is_cdrom = False
        self._device: BlockDevice | None = None
        self._ports: list[Port] = []
        """The host's ends of the rings' event channels."""
        self._kicked: list[int] = []
        """Rings that were not looked at since."""
        self._told_bytes = -1

    # --- the medium ---------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the image. Raises: UserError."""
        self._is_cdrom = await self.text("device-type") == "cdrom"
        self._image = await self._wanted()
        self._storage = self._open_image(self._image)
        await self.write(
            {
                "feature-max-indirect-segments": MAX_INDIRECT_SEGMENTS,
                "multi-queue-max-queues": MAX_QUEUES,
                "max-ring-page-order": MAX_RING_PAGE_ORDER,
            }
        )

    def _open_image(self, image: Image) -> Storage | None:
        if not image.target:
            return None
        return self._host.opener(image, self.path.rpartition("/")[2], self.report)

    async def _wanted(self) -> Image:
        params = await self.text("params")
        image_format = "raw"
        if self._is_qdisk:
            prefix, _, params = params.partition(":")
            image_format = "raw" if prefix == "aio" else prefix
        return Image(
            params,
            image_format,
            read_only=await self.text("mode") != "w",
            direct=await self.text("direct-io-safe") == "1",
            discard=await self.text("discard-enable", "1") != "0",
        )

    async def refresh(self) -> bool:
        """Another medium, or one of another size? One that cannot be opened leaves the old one."""
        wanted = await self._wanted()
        if wanted not in (self._image, self._refused):
            await self._change(wanted)
        return self._size_bytes != self._told_bytes

    async def _change(self, image: Image) -> None:
        self._refused = None
        try:
            storage = self._open_image(image)
        except UserError as error:
            self._refused = image
            await self.hotplug_failed(error)
            return
        old, self._storage = self._storage, storage
        self._image, self._told_bytes = image, -1
        if self._device is not None:
            self._device.change_storage(storage)
        await self._finish(old)
        await self.write({"hotplug-status": "connected"})

    async def release(self) -> None:
        """Flush, and close the image."""
        storage, self._storage, self._image = self._storage, None, None
        await self._finish(storage)

    async def _finish(self, storage: Storage | None) -> None:
        if storage is None:
            return
        if not storage.read_only:
            flushed = Pause()

            def done(errno: int) -> None:
                if errno:
                    self.report(f"the last writes may be lost: error {errno} at the last flush")
                flushed.resume()

            storage.submit(Operation(Kind.FLUSH, 0, 0, (), done))
            await flushed
        self._close(storage)

    def _close(self, storage: Storage) -> None:
        try:
            storage.close()
        except OSError as error:
            self.report(f"the last writes may be lost: {error.strerror}")

    @property
    def _size_bytes(self) -> int:
        return self._storage.size if self._storage is not None else 0

    # --- the front end ------------------------------------------------------------------------

    async def connect(self) -> None:
        """Map the rings and bind their ports. Raises: FrontEndError, XenError."""
        settings, ports = await self._read_front_end()
        d = self._host.domain
        bound: list[Port] = []
        device: BlockDevice | None = None
        try:
            for ring, port in enumerate(ports):
                bound.append(d.events.bind_back_end(port, partial(self._notified, ring)))
            device = BlockDevice(
                d.memory,
                d.grants,
                self._storage,
                settings,
                [partial(d.events.notify_guest, port) for port in bound],
                self.report,
                self._host.defer,
            )
        except XenError:
            for port in bound:
                d.events.unbind_back_end(port)
            raise
        self._device, self._ports = device, bound
        for ring in range(len(bound)):
            device.notified(ring)

    async def _read_front_end(self) -> tuple[RingSettings, list[int]]:
        value = await self.store.read(f"{self.front}/protocol")
        protocol = "native" if value is None else value.decode(errors="replace")
        if protocol not in ABIS:
            raise FrontEndError(f"the protocol {protocol[:32]!r} is not known")
        queues = await self.front_number("multi-queue-num-queues", 1)
        if not 1 <= queues <= MAX_QUEUES:
            raise FrontEndError(f"{queues} queues: at most {MAX_QUEUES} are possible")
        order = await self.front_number("ring-page-order", -1)
        if order > MAX_RING_PAGE_ORDER:
            raise FrontEndError(f"a ring of order {order}: at most {MAX_RING_PAGE_ORDER}")
        rings, ports = [], []
        for queue in range(queues):
            below = f"queue-{queue}/" if queues > 1 else ""
            keys = ["ring-ref"] if order < 0 else [f"ring-ref{n}" for n in range(1 << order)]
            rings.append([await self.front_number(f"{below}{key}") for key in keys])
            ports.append(await self.front_number(f"{below}event-channel"))
        theirs = bool(await self.front_number("feature-persistent", 0))
        read_only = self._image is None or self._image.read_only
        return RingSettings(rings, protocol, PERSISTENT and theirs, read_only), ports

    def _notified(self, ring: int) -> None:
        """Not at once: a front end kicks for the first of the requests that it has."""
        if not self._kicked:
            self._host.domain.soon(self._look)
        if ring not in self._kicked:
            self._kicked.append(ring)

    def _look(self) -> None:
        kicked, self._kicked = self._kicked, []
        if self._device is None:
            return
        for ring in kicked:
            self._device.notified(ring)
        # As blkback does: an image that has grown is found when it is used.
        if self._size_bytes != self._told_bytes:
            self.changed()

    async def publish(self) -> None:
        """Say what the disk is."""
        storage = self._storage
        assert self._image is not None
        read_only = self._image.read_only or (storage is not None and storage.read_only)
        self._told_bytes = self._size_bytes
        flags = VDISK_CDROM * self._is_cdrom | VDISK_READONLY * read_only
        nodes = {
            "feature-flush-cache": int(not read_only),
            "feature-barrier": int(not read_only),
            "feature-persistent": int(PERSISTENT),
            "sectors": self._told_bytes // SECTOR_BYTES,
            "info": flags,
            "sector-size": storage.sector_size if storage else SECTOR_BYTES,
            "physical-sector-size": storage.physical_sector_size if storage else SECTOR_BYTES,
        }
        if storage is not None and storage.discard_granularity:
            nodes["feature-discard"] = 1
            nodes["discard-granularity"] = storage.discard_granularity
            nodes["discard-alignment"] = 0
            nodes["discard-secure"] = int(storage.can_secure_discard)
        await self.write(nodes)

    async def disconnect(self) -> None:
        """End the requests under way, answered; then let rings and ports go."""
        device = self._device
        if device is not None:
            quiet = Pause()
            device.quiesce(lambda: quiet.resume())
            await quiet
            self._drop()

    def _drop(self) -> None:
        device, self._device = self._device, None
        if device is not None:
            device.close()
        for port in self._ports:
            self._host.domain.events.unbind_back_end(port)
        self._ports, self._kicked = [], []

    def close(self) -> None:
        """The domain is gone: everything written, and the image closed."""
        self._drop()
        storage, self._storage = self._storage, None
        if storage is not None:
            self._close(storage)
