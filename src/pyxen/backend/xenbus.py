"""The back end's side of a split device's life in xenstore, whatever the device does.

Source: public/io/xenbus.h; what it leaves open is done as Linux's back ends do it.

    /local/domain/0/backend/KIND/DOMID/DEVID     ours (and the tool stack's); the guest reads it
    /local/domain/DOMID/device/FRONT/DEVID       the guest's: whatever stands there is checked

A device's end is brought to what xenstore says, again and again: each change of its directory or
of the front end's state has all states read anew and the next step taken.

    back end         front end                 step
    Initialising     -                         open; InitWait, and hotplug-status says how it went
    InitWait         Initialised, Connected    connect; Connected
    any              Closing                   Closing
    any              Closed, or gone           disconnect; Closed (and released if not online)
    Closing          Initialising              as it has never connected: release; Closed
    Closed           Initialising              it comes back: InitWait
    gone             -                         disconnect, release

So an interrupted step is begun again, and the xenstore of a new xend needs nothing special: all
watches are set anew there, and fire. The tool stack detaches by `online` = 0 and the state Closing.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

from pyxen.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialised,
    XenbusStateInitialising,
    XenbusStateInitWait,
    XenbusStateReconfigured,
    XenbusStateUnknown,
)
from pyxen.errors import UserError, XenError
from pyxen.proto.xs import domain_path
from pyxen.proto.xs_client import XsClient
from pyxen.types import DomId

HOTPLUG_ERROR: Final = "error"
"""The value of hotplug-status when the host cannot give the device."""
REPORTS: Final = 16
"""How many lines a device may add to the log: a guest can make mistakes without end."""

_NUMBER: Final = re.compile(rb"[0-9]{1,10}")


class FrontEndError(Exception):
    """What the front end says cannot be used."""


class Backend(ABC):
    """One device. Subclasses say what the steps mean.

    path, front: the two directories in xenstore.
    """

    def __init__(self, bus: XenBus, path: str, front: str) -> None:
        self.store = bus.store
        self.path = path
        self.front = front
        self._bus = bus
        self._changed = self._busy = self._closed = False
        self._opened = self._connected = False
        self._reports = 0

    # --- what a kind of device does -----------------------------------------------------------

    @abstractmethod
    async def open(self) -> None:
        """Take what the host gives for the device, write what the front end has to know first.

        Raises: UserError, with nothing taken.
        """

    @abstractmethod
    async def connect(self) -> None:
        """Connect to the front end by what it wrote. Raises: FrontEndError, XenError."""

    @abstractmethod
    async def publish(self) -> None:
        """Write what the front end reads when it sees Connected; may be done again."""

    @abstractmethod
    async def refresh(self) -> bool:
        """The device is open, and something may have changed; whether to publish it."""

    @abstractmethod
    async def disconnect(self) -> None:
        """End what is under way, and let the front end go."""

    @abstractmethod
    async def release(self) -> None:
        """Give back what `open` took, perhaps not all, with everything written."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect and release at once: the domain is gone."""

    # --- steps --------------------------------------------------------------------------------

    def changed(self) -> None:
        """Something about the device may have changed."""
        self._changed = True
        if not self._busy and not self._closed:
            self.store.start(self._work())

    async def _work(self) -> None:
        self._busy = True
        try:
            while self._changed and not self._closed:
                self._changed = False
                await self._step()
        except XenError as error:
            self.report(f"xenstore: {error}")
        finally:
            self._busy = False

    async def _step(self) -> None:
        state = await self.state_of(self.path)
        front = await self.state_of(self.front)
        if state == XenbusStateUnknown:
            await self._vanish()
        elif state == XenbusStateInitialising:
            # Our own word of a failure comes back as a change: it must not make us try again.
            if await self.text("hotplug-status") != HOTPLUG_ERROR:
                await self._open()
        elif front in (XenbusStateUnknown, XenbusStateClosed):
            if state != XenbusStateClosed:
                await self._end()
        elif front == XenbusStateClosing:
            if state not in (XenbusStateClosing, XenbusStateClosed):
                await self.switch(XenbusStateClosing)
        elif state == XenbusStateClosing:
            if front == XenbusStateInitialising:
                await self._end()
        elif state == XenbusStateClosed:
            if front == XenbusStateInitialising and await self._is_online():
                await self.switch(XenbusStateInitWait)
        else:
            await self._serve(state, front)

    async def _serve(self, state: int, front: int) -> None:
        """The device is wanted."""
        ready = front in (XenbusStateInitialised, XenbusStateConnected)
        refreshed = self._opened and await self.refresh()
        if ready and (state != XenbusStateConnected or not self._connected):
            await self._connect()
        elif ready and refreshed:
            # Written again, the state makes the front end look at the size.
            await self.publish()
            await self.switch(XenbusStateConnected)

    async def _open(self) -> None:
        await self._let_go()
        # Already, because the stream may break within: then it is given back when it is begun anew.
        self._opened = True
        try:
            await self.open()
        except UserError as error:
            self._opened = False
            await self.hotplug_failed(error)
            return
        await self.write({"hotplug-status": "connected", "state": XenbusStateInitWait})

    async def hotplug_failed(self, error: UserError) -> None:
        """Tell the tool stack that the host's part does not work, as Xen's hotplug scripts do."""
        self.report(error.message)
        text = f"{error.message}\n{error.hint}"
        await self.write({"hotplug-error": text, "hotplug-status": HOTPLUG_ERROR})

    async def _connect(self) -> None:
        if not self._opened:
            return
        if not self._connected:
            try:
                await self.connect()
            except (FrontEndError, XenError) as error:
                self.report(f"cannot connect: {error}")
                await self.switch(XenbusStateClosing)
                return
            self._connected = True
        await self.publish()
        await self.switch(XenbusStateConnected)

    async def _end(self) -> None:
        await self._disconnect()
        if not await self._is_online():
            await self._let_go()
        await self.switch(XenbusStateClosed)

    async def _vanish(self) -> None:
        await self._let_go()
        if not self._changed:
            self._closed = True
            self._bus.forget(self)

    async def _disconnect(self) -> None:
        if self._connected:
            self._connected = False
            await self.disconnect()

    async def _let_go(self) -> None:
        await self._disconnect()
        if self._opened:
            self._opened = False
            await self.release()

    # --- for subclasses -----------------------------------------------------------------------

    async def switch(self, state: int) -> None:
        """Write our state."""
        await self.write({"state": state})

    async def write(self, nodes: Mapping[str, str | int]) -> None:
        """Write below our directory, all or nothing; nothing if the device was removed meanwhile.

        Else what is written late would make the directory of a removed device anew.
        """

        async def body(tx_id: int) -> None:
            if await self.store.read(f"{self.path}/state", tx_id) is not None:
                for key, value in nodes.items():
                    await self.store.write(f"{self.path}/{key}", str(value), tx_id)

        await self.store.transaction(body)

    async def state_of(self, directory: str) -> int:
        """A XenbusState; Unknown for whatever is none."""
        value = await self.store.read(f"{directory}/state")
        state = int(value) if value is not None and _NUMBER.fullmatch(value) else 0
        return state if state <= XenbusStateReconfigured else XenbusStateUnknown

    async def text(self, key: str, default: str = "") -> str:
        """A value of our own directory."""
        value = await self.store.read(f"{self.path}/{key}")
        return default if value is None else value.decode(errors="surrogateescape")

    async def front_number(self, key: str, default: int | None = None) -> int:
        """A number of the front end's. Raises: FrontEndError if it is none, or is missing."""
        value = await self.store.read(f"{self.front}/{key}")
        if value is None and default is not None:
            return default
        if value is None or not _NUMBER.fullmatch(value):
            raise FrontEndError(f"{key} is {value!r}")
        return int(value)

    async def _is_online(self) -> bool:
        return await self.text("online", "1") != "0"

    def report(self, line: str) -> None:
        """Add a line to the log."""
        self._reports += 1
        if self._reports <= REPORTS:
            self._bus.report(f"{self.path.removeprefix('/local/domain/0/backend/')}: {line}")

    def end(self) -> None:
        """Close, whatever is under way."""
        self._closed = True
        self.close()


Factory = Callable[["XenBus", str, str], Backend]
"""Makes a Backend of the bus, its own directory and the front end's."""


class XenBus:
    """All back ends of one domain. They come and go with their directories."""

    def __init__(
        self,
        store: XsClient,
        domid: DomId,
        kinds: Mapping[str, tuple[str, Factory]],
        report: Callable[[str], None],
    ) -> None:
        """kinds: for each kind of back end the kind of its front ends, and what makes one."""
        self.store = store
        self.report = report
        self._domid = domid
        self._kinds = kinds
        self._devices: dict[str, Backend] = {}
        """By directory."""
        for kind in kinds:
            store.watch(self._root(kind), partial(self._changed, kind))

    def close(self) -> None:
        """The domain is gone."""
        for device in self._devices.values():
            device.end()

    def forget(self, device: Backend) -> None:
        """A device's directory is gone, and all of it is given back."""
        del self._devices[device.path]
        self.store.unwatch(f"{device.front}/state")

    def _root(self, kind: str) -> str:
        return f"{domain_path(0)}/backend/{kind}/{self._domid}"

    def _changed(self, kind: str, path: str) -> None:
        root = self._root(kind)
        devid = path.removeprefix(f"{root}/").partition("/")[0] if path != root else ""
        known = self._devices.get(f"{root}/{devid}")
        if known is not None:
            known.changed()
        else:
            self.store.start(self._look(kind))

    async def _look(self, kind: str) -> None:
        """Find the devices that there are."""
        root = self._root(kind)
        for devid in await self.store.directory(root):
            if devid.isdigit() and f"{root}/{devid}" not in self._devices:
                self._enter(kind, devid)
        for device in list(self._devices.values()):
            if device.path.startswith(f"{root}/"):
                device.changed()

    def _enter(self, kind: str, devid: str) -> None:
        front_kind, factory = self._kinds[kind]
        front = f"{domain_path(self._domid)}/device/{front_kind}/{devid}"
        device = factory(self, f"{self._root(kind)}/{devid}", front)
        self._devices[device.path] = device
        self.store.watch(f"{front}/state", lambda _: device.changed())
