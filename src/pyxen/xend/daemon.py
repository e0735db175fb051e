"""xend itself: takes over what an earlier one left, then answers until it is told to stop.

Domains are processes of their own and outlive xend; their record, xenstore's journal and the
control sockets are all that a new xend needs to carry on. One thread, one event loop, no polling.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import shutil
import signal
import socket
from collections.abc import Coroutine, Iterator, Mapping
from typing import Any, Protocol

from pyxen.errors import UserError
from pyxen.paths import Paths, listen_unix
from pyxen.xend.api import Api, Operation
from pyxen.xend.dmesg import Dmesg
from pyxen.xend.domain import SHUTDOWN_REASONS, Domain
from pyxen.xend.events import Events
from pyxen.xend.pid import Pid
from pyxen.xend.process import DOMAIN_COMMAND, DomainProcess, ProcessGone
from pyxen.xend.record import LIVE, DomainRecord, JsonObject
from pyxen.xend.registry import Registry
from pyxen.xend.spare import Nursery
from pyxen.xenstored.server import XenStored

log = logging.getLogger(__name__)

ADOPT_SECONDS = 20.0


class Toolstack(Protocol):
    """What xend is told to do; the implementation is pyxen.toolstack."""

    operations: Mapping[str, Operation]

    def prepare_host(self, xend: Xend) -> None:
        """xenstore is up: enter what belongs to the host."""

    async def recover(self, xend: Xend, domain: Domain) -> None:
        """An earlier xend left this domain half made or half gone: finish what was begun."""

    async def domain_ended(self, xend: Xend, domain: Domain) -> None:
        """The guest shut down or crashed, or its process is gone: do what its config says."""


class Xend:
    """The daemon's parts, as operations use them."""

    def __init__(
        self,
        paths: Paths,
        toolstack: Toolstack,
        command: tuple[str, ...] = DOMAIN_COMMAND,
        *,
        spare: bool = True,
    ) -> None:
        self.paths = paths
        self.toolstack = toolstack
        self.registry = Registry(paths)
        self.domains: dict[int, Domain] = {}
        self.events = Events()
        self.dmesg = Dmesg(paths.dmesg)
        self.nursery = Nursery(command, paths.state / "logs", spare=spare)
        self.store: XenStored
        self.stop = asyncio.Event()
        self._api = Api(self, toolstack.operations)
        self._background: set[asyncio.Task[Any]] = set()

    async def run(self, ready: int | None = None) -> None:
        """Serve until `stop`. `ready`: a descriptor to write "ready" to when xl can be answered."""
        if ready is not None:
            # It was inherited; domain processes must not inherit it in turn.
            os.set_inheritable(ready, False)
        self.paths.make()
        with hold_lock(self.paths):
            api_socket = listen_unix(self.paths.xend_socket)
            store_socket = listen_unix(self.paths.xenstored_socket)
            try:
                await self._serve(api_socket, store_socket, ready)
            finally:
                for listener in (api_socket, store_socket):
                    listener.close()
                self.paths.xend_socket.unlink(missing_ok=True)
                self.paths.xenstored_socket.unlink(missing_ok=True)

    async def _serve(
        self, api_socket: socket.socket, store_socket: socket.socket, ready: int | None
    ) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self.stop.set)
        self.registry.load()
        self.store = XenStored(self.paths.journal)
        self.toolstack.prepare_host(self)
        await asyncio.gather(*(self._adopt(record) for record in list(self.registry)))
        await self.store.serve(store_socket)
        await self._api.serve(api_socket)
        log.info("ready, %d domains", len(self.domains))
        self.nursery.prepare()
        if ready is not None:
            os.write(ready, b"ready\n")
            os.close(ready)
        await self.stop.wait()
        log.info("stopping; %d domains run on", len(self.domains))
        await self._api.close()
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.nursery.close()
        await asyncio.gather(*(domain.close() for domain in self.domains.values()))
        await self.store.close()

    def background(self, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run something beside everything else; its failure is logged, not lost."""
        task = asyncio.ensure_future(coroutine)
        self._background.add(task)
        task.add_done_callback(self._background_done)
        return task

    def _background_done(self, task: asyncio.Task[Any]) -> None:
        self._background.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("internal error", exc_info=task.exception())

    def find(self, domid: int) -> Domain:
        """The domain of this number. UserError if there is none."""
        domain = self.domains.get(domid)
        if domain is None:
            raise UserError(f"domain {domid} does not exist", "`xl list` shows those that do")
        return domain

    async def start_process(self, domain: Domain) -> DomainProcess:
        """Start the process of a new domain and connect to it. ProcessGone if it does not live."""
        record = domain.record
        run_dir = self.paths.domain_run(record.domid)
        shutil.rmtree(run_dir, ignore_errors=True)
        run_dir.mkdir(mode=0o700)
        self.nursery.replace_later()
        spare = self.nursery.take_spare(record.spec)
        if spare is not None:
            try:
                return await self._connect(domain, spare)
            except ProcessGone as error:
                log.warning("the spare domain process was of no use: %s", error)
                if domain.process is not None:
                    await domain.process.end()
        return await self._connect(domain, self.nursery.spawn(record.spec))

    async def _connect(self, domain: Domain, pid: Pid) -> DomainProcess:
        assert pid.start is not None
        domain.record.pid, domain.record.pid_start = pid.pid, pid.start
        process = self._process(domain, pid)
        self.registry.save(domain.record)
        await process.connect()
        return process

    def _process(self, domain: Domain, pid: Pid) -> DomainProcess:
        process = DomainProcess(
            domain.domid,
            pid,
            self.paths.domain_run(domain.domid),
            lambda event: self._domain_event(domain, event),
        )
        domain.process = process
        return process

    def enter(self, domain: Domain) -> None:
        """The domain exists from now on: supervise it."""
        domain.record.phase = LIVE
        self.registry.save(domain.record)
        domain.serve_xenstore(self.store)
        domain.serve_backends(self.store)
        self.background(self._supervise(domain))

    async def _supervise(self, domain: Domain) -> None:
        assert domain.process is not None
        await domain.process.gone.wait()
        if domain.ending is None:
            self._note_end(domain, domain.record.shutdown_reason or "crash")

    def _domain_event(self, domain: Domain, event: JsonObject) -> None:
        """What the domain process tells without being asked."""
        kind = event.get("event")
        if kind == "crash":
            report = event.get("report")
            domain.record.crash_report = str(report) if report else None
            self.registry.save(domain.record)
            self.dmesg.say(f"d{domain.domid}: crashed; report: {report}")
        elif kind == "dmesg":
            self.dmesg.say(f"d{domain.domid}: {str(event.get('line', ''))[:1024]}")
        elif kind == "shutdown" and domain.record.shutdown_reason is None:
            reason = event.get("reason")
            self._note_end(domain, reason if reason in SHUTDOWN_REASONS else "crash")

    def _note_end(self, domain: Domain, reason: str) -> None:
        """The guest ended by itself; begin what its configuration says for that."""
        domain.record.shutdown_reason = reason
        self.registry.save(domain.record)
        self.store.notify_shutdown(domain.domid)
        self.dmesg.say(f"d{domain.domid}: shut down, reason {reason}")
        self.events.publish("shutdown", domid=domain.domid, name=domain.record.name, reason=reason)
        self.background(self.toolstack.domain_ended(self, domain))

    async def _adopt(self, record: DomainRecord) -> None:
        """Take over a domain that an earlier xend started."""
        domain = Domain(record)
        self.domains[record.domid] = domain
        status = await self._reach(domain)
        if record.phase != LIVE:
            log.warning("domain %d (%s) was %s", record.domid, record.name, record.phase)
            self.background(self.toolstack.recover(self, domain))
        elif status is None:
            self._note_end(domain, record.shutdown_reason or "crash")
        else:
            self.enter(domain)
            ended = record.shutdown_reason or status.get("shutdown_reason")
            if ended:
                self._note_end(domain, ended if ended in SHUTDOWN_REASONS else "crash")

    async def _reach(self, domain: Domain) -> JsonObject | None:
        """The status of the domain's process; None, and no process, if there is no living one."""
        record = domain.record
        if not record.pid:
            return None
        try:
            process = self._process(domain, Pid(record.pid, record.pid_start))
        except OSError:
            log.warning("domain %d (%s): its process is gone", record.domid, record.name)
            return None
        try:
            await process.connect()
            return await process.call("status", seconds=ADOPT_SECONDS)
        except (ProcessGone, UserError, TimeoutError) as error:
            log.error("domain %d (%s) does not answer: %s", record.domid, record.name, error)
            await process.end()
            domain.process = None
            return None


@contextlib.contextmanager
def hold_lock(paths: Paths) -> Iterator[None]:
    """Be the only xend of this state directory. UserError if there is another."""
    with open(paths.xend_lock, "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise UserError(f"xend runs already (process {lock.read().strip()})") from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()
        yield
