"""One domain as xend sees it while it runs: its record, its process, how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from pyxen.errors import XenError
from pyxen.proto.xs import ProtocolError
from pyxen.xend.process import DomainProcess, ProcessGone
from pyxen.xend.record import DomainRecord, JsonObject

if TYPE_CHECKING:
    from pyxen.xenstored.server import XenStored

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

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
        self._backends_task: asyncio.Task[None] | None = None

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

    def serve_backends(self, store: XenStored) -> None:
        """Connect its back ends to the store, with domid 0's rights; as long as the process lives.

        From before the domain is entered: its disks are opened while it is made.
        """
        if self._backends_task is None:
            self._backends_task = asyncio.ensure_future(self._serve("backends", store.serve_host))

    def serve_xenstore(self, store: XenStored) -> None:
        """Connect the guest's xenstore ring to the store for as long as the process lives."""

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await store.attach_guest(self.domid, reader, writer)

        self._xenstore_task = asyncio.ensure_future(self._serve("xenstore", serve))

    async def _serve(self, stream: str, serve: Serve) -> None:
        process = self.process
        assert process is not None
        while not process.gone.is_set():
            try:
                reader, writer = await process.open_stream({"stream": stream})
            except ProcessGone:
                return
            try:
                await serve(reader, writer)
            except (ProtocolError, XenError) as error:
                log.error("domain %d: no %s for it: %s", self.domid, stream, error)
                return
            finally:
                writer.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.gone.wait(), REATTACH_SECONDS)

    async def release_xenstore(self) -> None:
        """Cut the connections to xenstore: the guest's, and that of its back ends."""
        tasks = [task for task in (self._xenstore_task, self._backends_task) if task is not None]
        self._xenstore_task = self._backends_task = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def close(self) -> None:
        """Let go of the domain, which may run on."""
        await self.release_xenstore()
        if self.process is not None:
            await self.process.close()
            self.process = None


OnEvent = Callable[[Domain, JsonObject], None]
