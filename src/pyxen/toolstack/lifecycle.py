"""What happens when a guest ends by itself: on_poweroff, on_reboot, on_crash … of its config."""

from __future__ import annotations

import logging
import time

from pyxen.errors import UserError
from pyxen.toolstack import xenstore_layout
from pyxen.toolstack.create import create
from pyxen.toolstack.destroy import destroy
from pyxen.xend.daemon import Xend
from pyxen.xend.domain import Domain
from pyxen.xend.record import BUILDING, RESTARTING, JsonObject

log = logging.getLogger(__name__)

QUICK_SECONDS = 5.0
QUICK_RESTARTS = 3
"""A guest that ends this often, each time so soon after its start, is not started again."""


def action_for(config: JsonObject, reason: str) -> str:
    """The libxl_action_on_shutdown for a reason; libxl's default is destroy."""
    if reason == "suspend":
        return "preserve"
    return str(config.get(f"on_{reason}", "destroy"))


async def domain_ended(xend: Xend, domain: Domain) -> None:
    """Do what the configuration says for the end that the guest came to."""
    record = domain.record
    reason = record.shutdown_reason or "crash"
    action = action_for(record.config, reason) if record.monitor else "preserve"
    dead = domain.process is None or domain.process.gone.is_set()
    if action.startswith("coredump_"):
        log.warning("domain %d: no core dump: not supported yet", record.domid)
        action = action.removeprefix("coredump_")
    if action == "soft_reset":
        log.warning("domain %d: soft reset is not supported yet", record.domid)
        action = "destroy"
    if dead and action in ("preserve", "restart_rename"):
        # There is nothing left to preserve.
        action = "restart" if action == "restart_rename" else "destroy"
    log.info("domain %d (%s): %s, %s", record.domid, record.name, reason, action)
    if action == "preserve":
        domain.settle(destroyed=False)
    elif action == "restart":
        await _restart(xend, domain)
    elif action == "restart_rename":
        await _rename_and_restart(xend, domain)
    else:
        await destroy(xend, domain)
        domain.settle(destroyed=True)


async def recover(xend: Xend, domain: Domain) -> None:
    """A new xend found the domain half made or half gone: finish what was begun."""
    record = domain.record
    if record.phase == RESTARTING:
        await _restart(xend, domain)
        return
    config, restarts = _next_config(domain), _next_restarts(domain)
    begin_again = record.phase == BUILDING and record.restarted
    await destroy(xend, domain)
    if begin_again:
        await _start_again(xend, domain, config, restarts)


async def _restart(xend: Xend, domain: Domain) -> None:
    config, restarts = _next_config(domain), _next_restarts(domain)
    await destroy(xend, domain, RESTARTING)
    successor = await _start_again(xend, domain, config, restarts)
    domain.settle(destroyed=True, successor=successor)


async def _rename_and_restart(xend: Xend, domain: Domain) -> None:
    """Keep what is left of it under another name, and start it again under its own."""
    record = domain.record
    config, restarts = _next_config(domain), _next_restarts(domain)
    record.name += time.strftime("-%Y%m%dT%H%MZ", time.gmtime())
    record.monitor = False
    xend.registry.save(record)
    xenstore_layout.rename_domain(xend.store.local, record)
    successor = await _start_again(xend, domain, config, restarts)
    domain.settle(destroyed=False, successor=successor)


def _next_config(domain: Domain) -> JsonObject:
    config = dict(domain.record.config)
    config["c_info"] = {**config.get("c_info", {}), "name": domain.record.name}
    return config


def _next_restarts(domain: Domain) -> int:
    quick = time.time() - domain.record.start_time < QUICK_SECONDS
    return domain.record.restarts + 1 if quick else 0


async def _start_again(xend: Xend, domain: Domain, config: JsonObject, restarts: int) -> int | None:
    """The number of the new domain; None, and a line in dmesg, if there is none."""
    name = config["c_info"]["name"]
    if restarts > QUICK_RESTARTS:
        xend.dmesg.say(f"{name}: ended {restarts} times right after its start; not started again")
        return None
    try:
        successor = await create(xend, config, predecessor=domain.record, restarts=restarts)
    except UserError as error:
        xend.dmesg.say(f"{name}: not started again: {error.message}")
        xend.events.publish("restart-failed", name=name, message=error.message)
        return None
    return successor.domid
