"""End a domain and remove every trace of it."""

from __future__ import annotations

import asyncio
import shutil

from pyxen.toolstack import xenstore_layout
from pyxen.xend.daemon import Xend
from pyxen.xend.domain import Domain
from pyxen.xend.process import END_SECONDS
from pyxen.xend.record import ENDING, DomainRecord

FLUSH_SECONDS = 60.0
"""How long a domain's process may take to bring what its guest wrote to its disks."""


async def destroy(xend: Xend, domain: Domain, phase: str = ENDING) -> None:
    """Return when nothing of the domain is left. May be called by several at a time.

    It goes on to its end even if the caller is cancelled. `phase` is what a new xend shall find if
    this one is killed meanwhile. Whoever waits for the domain is not told: see Domain.settle.
    """
    if domain.ending is None:
        domain.ending = xend.background(_destroy(xend, domain, phase))
    await asyncio.shield(domain.ending)


async def _destroy(xend: Xend, domain: Domain, phase: str) -> None:
    record = domain.record
    record.phase = phase
    xend.registry.save(record)
    if domain.process is not None:
        await domain.process.end(FLUSH_SECONDS if record.config.get("disks") else END_SECONDS)
    await domain.release_xenstore()
    # The record goes last: a xend killed in between finds it and finishes the work.
    xend.store.release(record.domid)
    remove_nodes(xend, record)
    shutil.rmtree(xend.paths.domain_run(record.domid), ignore_errors=True)
    xend.registry.remove(record.domid)
    xend.domains.pop(record.domid, None)
    xend.dmesg.say(f"d{record.domid}: destroyed, {record.name}")
    xend.events.publish("destroyed", domid=record.domid, name=record.name)


def remove_nodes(xend: Xend, record: DomainRecord) -> None:
    """Remove the domain's xenstore nodes; /vm stays if another domain has the same uuid."""
    alone = all(r.domid == record.domid for r in xend.registry.users_of_uuid(record.uuid))
    xenstore_layout.remove_domain(xend.store.local, record.domid, record.uuid if alone else None)
