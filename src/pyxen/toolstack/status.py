"""What domains are doing: the numbers behind `xl list`, `vcpu-list`, `uptime` and `vm-list`."""

from __future__ import annotations

import asyncio
import contextlib
import time

from pyxen.errors import UserError
from pyxen.toolstack import host, libxl_json
from pyxen.xend.daemon import Xend
from pyxen.xend.domain import SHUTDOWN_REASONS, Domain
from pyxen.xend.process import ProcessGone
from pyxen.xend.record import LIVE, JsonObject
from pyxen.xend.registry import HOST_UUID

STATUS_SECONDS = 2.0
"""A domain process that does not answer for so long is shown as it was last seen."""

STATES = ("running", "blocked", "paused", "shutdown", "crashed", "dying")
NUMBERS = ("memory_kib", "maxmem_kib", "vcpus_online", "cpu_time_ns", "pause_count")
MAX_VCPUS = 512


async def domain_list(xend: Xend, domains: list[Domain] | None = None) -> list[JsonObject]:
    """Entries for these domains; for None all, the host first."""
    now = time.time()
    entries: list[JsonObject] = []
    if domains is None:
        entries.append(host_entry(xend, now))
        domains = [xend.domains[domid] for domid in sorted(xend.domains)]
    entries += await asyncio.gather(*(domain_entry(domain) for domain in domains))
    return entries


def host_entry(xend: Xend, now: float) -> JsonObject:
    """The entry of Domain-0."""
    return host.domain_info(xend.registry.host_name, HOST_UUID, now)


async def domain_entry(domain: Domain) -> JsonObject:
    """One domain's entry: its process's own numbers, and what xend knows."""
    record = domain.record
    status = await _status(domain)
    state = dict(status.get("state") or {})
    if record.phase != LIVE:
        state.update({"paused": True} if domain.ending is None else {"dying": True})
    spec = record.spec
    entry = {
        "memory_kib": spec.get("memory_kib", 0),
        "maxmem_kib": spec.get("maxmem_kib", 0),
        "vcpus_online": spec.get("vcpus", 0),
        "cpu_time_ns": 0,
        "vcpus": [],
        **status,
        "domid": record.domid,
        "name": record.name,
        "uuid": record.uuid,
        "start_time": record.start_time,
        "state": state,
    }
    if record.shutdown_reason is not None:
        entry["shutdown_reason"] = record.shutdown_reason
    return entry


async def _status(domain: Domain) -> JsonObject:
    process = domain.process
    if process is None or domain.record.phase != LIVE:
        return domain.last_status
    with contextlib.suppress(
        ProcessGone, UserError, TimeoutError, ValueError, TypeError, KeyError, AttributeError
    ):
        domain.last_status = parse_status(await process.call("status", seconds=STATUS_SECONDS))
    return domain.last_status


def parse_status(answer: JsonObject) -> JsonObject:
    """A process's answer to `status`, checked: a guest may have taken the process over.

    Raises ValueError, TypeError, KeyError, AttributeError.
    """
    state = {key: bool(answer["state"].get(key)) for key in STATES}
    vcpus = [
        {
            "id": int(vcpu["id"]),
            "cpu": int(vcpu.get("cpu", 0)),
            "state": str(vcpu["state"]),
            "cpu_time_ns": int(vcpu["cpu_time_ns"]),
        }
        for vcpu in answer["vcpus"][:MAX_VCPUS]
    ]
    reason = answer.get("shutdown_reason")
    return {
        **{key: int(answer[key]) for key in NUMBERS},
        "state": state,
        "vcpus": vcpus,
        "shutdown_reason": reason if reason in SHUTDOWN_REASONS else None,
    }


def domain_config(domain: Domain) -> JsonObject:
    """A domain's configuration as `xl list -l` shows it: {"domid", "config"}."""
    record = domain.record
    target = domain.last_status.get("memory_kib")
    config = libxl_json.live_config(record.config, record.name, target)
    return {"domid": record.domid, "config": config}


def host_config(xend: Xend) -> JsonObject:
    """The host's entry of `xl list -l`."""
    total, _ = host.memory_kib()
    return {"domid": 0, "config": libxl_json.host_config(xend.registry.host_name, total)}
