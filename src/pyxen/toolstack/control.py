"""Ask a running domain to do something: pause, unpause, shut down, reboot, another name."""

from __future__ import annotations

import asyncio
import contextlib
from itertools import count
from typing import Any

from pyxen.errors import UserError
from pyxen.toolstack import xenstore_layout
from pyxen.xend.daemon import Xend
from pyxen.xend.domain import Domain
from pyxen.xend.process import DomainProcess, ProcessGone

ACKNOWLEDGE_SECONDS = 60.0
"""How long libxl waits for the guest to take note of a request."""

_tokens = count()


def process_of(domain: Domain) -> DomainProcess:
    """The domain's process. UserError while there is none."""
    if domain.process is None or domain.process.gone.is_set() or domain.ending is not None:
        raise UserError(f"domain {domain.domid} is going away")
    return domain.process


async def pause(domain: Domain) -> None:
    """One more reason to stand still."""
    await process_of(domain).call("pause")


async def unpause(domain: Domain) -> None:
    """One reason less to stand still."""
    await process_of(domain).call("unpause")


async def request_shutdown(xend: Xend, domain: Domain, request: str) -> None:
    """Write control/shutdown and wait until the guest has taken note of it.

    `request` is poweroff, reboot, suspend or halt. UserError if the guest cannot or does not take
    note; the request is then taken back.
    """
    process = process_of(domain)
    who = f"domain {domain.domid} ({domain.record.name})"
    if domain.record.shutdown_reason is not None:
        raise UserError(
            f"{who} has shut down already ({domain.record.shutdown_reason})",
            f"remove what is left of it: xl destroy {domain.domid}",
        )
    status = await process.call("status")
    if status.get("pause_count"):
        raise UserError(f"{who} is paused and cannot shut down", f"xl unpause {domain.domid}")
    node = f"{xenstore_layout.domain_path(domain.domid)}/control/shutdown"
    xend.store.local.write(node, request.encode())
    if not await _emptied(xend, domain, process, node):
        xend.store.local.write(node, b"")
        raise UserError(
            f"{who} did not take note of the request in {ACKNOWLEDGE_SECONDS:.0f} s",
            f"look at its console (xl console {domain.domid}), or end it: xl destroy",
        )


async def _emptied(xend: Xend, domain: Domain, process: DomainProcess, node: str) -> bool:
    """Wait until the guest empties a node, or ends; False if it does neither."""
    taken = asyncio.Event()

    def look(*_: object) -> None:
        if not xend.store.local.exists(node) or not xend.store.local.read(node):
            taken.set()

    token = f"shutdown-{next(_tokens)}"
    xend.store.local.watch(node, token, look)
    gone = asyncio.ensure_future(process.gone.wait())
    noted = asyncio.ensure_future(taken.wait())
    any_of: list[asyncio.Future[Any]] = [gone, noted, domain.settled]
    try:
        done, _ = await asyncio.wait(
            any_of, timeout=ACKNOWLEDGE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        xend.store.local.unwatch(node, token)
        gone.cancel()
        noted.cancel()
    return bool(done)


async def rename(xend: Xend, domain: Domain, name: str) -> None:
    """Give a domain another name. UserError if it is taken."""
    record = domain.record
    if name == record.name:
        return
    try:
        xend.registry.check_name(name)
    except UserError as error:
        raise UserError(error.message, "choose another name", 1) from None
    record.name = name
    xend.registry.save(record)
    xenstore_layout.rename_domain(xend.store.local, record)
    xend.events.publish("renamed", domid=record.domid, name=name)
    # It matters only for the words of its own log.
    with contextlib.suppress(ProcessGone):
        await process_of(domain).call("set_name", name=name)
