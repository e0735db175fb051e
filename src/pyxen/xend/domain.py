"""One domain as xend sees it while it runs: its record, its process, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING

from pyxen.errors import XenError
from pyxen.proto.xs import ProtocolError
from pyxen.xend.process import DomainProcess, ProcessGone
from pyxen.xend.record import DomainRecord, JsonObject

if TYPE_CHECKING:
    from pyxen.xenstored.server import XenStored

log = logging.getLogger(__name__)

REATTACH_SECONDS = 0.1

SHUTDOWN_REASONS = ("poweroff", "reboot", "suspend", "crash", "watchdog", "soft_reset", "unknown")
"""SHUTDOWN_* of public/sched.h; `unknown` are all other numbers, as in libxl."""


class Domain:
    """A domain that exists.

    `settled` tells waiters how it ended, once what its configuration says for that end is done:
    {"reason": str | None, "destroyed": bool, "report": str | None, "successor": domid | None}.
    """

    def __init__(self, record: DomainRecord) -> None:
        self.record = record
        self.process: DomainProcess | None = None
        self.settled: asyncio.Future[JsonObject] = asyncio.get_running_loop().create_future()
        self.ending: asyncio.Task[None] | None = None
        self.last_status: JsonObject = {}
        self._xenstore_task: asyncio.Task[None] | None = None

    @property
    def domid(self) -> int:
        """Its number."""
        return self.record.domid

    def settle(self, *, destroyed: bool, successor: int | None = None) -> None:
        """Tell everybody who waits for the domain's end; the first telling counts."""
        if not self.settled.done():
            self.settled.set_result(
                {
                    "reason": self.record.shutdown_reason,
                    "report": self.record.crash_report,
                    "destroyed": destroyed,
                    "successor": successor,
                }
            )

    def serve_xenstore(self, store: XenStored) -> None:
        """Connect the guest's xenstore ring to the store for as long as the process lives."""
        self._xenstore_task = asyncio.ensure_future(self._serve_xenstore(store))

    async def _serve_xenstore(self, store: XenStored) -> None:
        process = self.process
        assert process is not None
        while not process.gone.is_set():
            try:
                reader, writer = await process.open_stream({"stream": "xenstore"})
            except ProcessGone:
                return
            try:
                await store.attach_guest(self.domid, reader, writer)
            except (ProtocolError, XenError) as error:
                log.error("domain %d: no xenstore for it: %s", self.domid, error)
                return
            finally:
                writer.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.gone.wait(), REATTACH_SECONDS)

    async def release_xenstore(self) -> None:
        """Cut the guest's xenstore connection."""
        task, self._xenstore_task = self._xenstore_task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def close(self) -> None:
        """Let go of the domain, which may run on."""
        await self.release_xenstore()
        if self.process is not None:
            await self.process.close()
            self.process = None


OnEvent = Callable[[Domain, JsonObject], None]
