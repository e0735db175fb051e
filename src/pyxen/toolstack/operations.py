"""The operations that xl may ask of xend, by name.

Each takes the request's parameters and returns what JSON can hold. `domain` in a request is a
domain's number or name, as the user wrote it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

from pyxen import __version__
from pyxen.bootloader.boot import bootloader_of
from pyxen.errors import UserError
from pyxen.toolstack import (
    control,
    disk_plan,
    disks,
    host,
    libxl_json,
    lifecycle,
    status,
    xenstore_layout,
)
from pyxen.toolstack.create import create
from pyxen.toolstack.destroy import destroy
from pyxen.xend.api import Operation
from pyxen.xend.daemon import Xend
from pyxen.xend.domain import Domain
from pyxen.xend.record import JsonObject

PLACEHOLDER: JsonObject = {"kernel": "found by the boot loader"}
"""What is to be started, in the check of a configuration that has a boot loader."""


def find_domid(xend: Xend, word: object) -> int:
    """The domid that a user's word means: digits are a number, anything else a name."""
    text = str(word)
    if text.isascii() and text.isdigit() and len(text) < 10:
        return int(text)
    record = xend.registry.named(text)
    if record is not None:
        return record.domid
    if text == xend.registry.host_name:
        return 0
    near = get_close_matches(text, [r.name for r in xend.registry], 1)
    hint = f"did you mean {near[0]}?" if near else "`xl list` shows the domains"
    raise UserError(f"{text} is an invalid domain identifier", hint)


def guest(xend: Xend, request: JsonObject, verb: str) -> Domain:
    """The guest that a request is about. UserError for the host, and if there is none."""
    domid = find_domid(xend, request.get("domain", ""))
    if domid == 0:
        raise UserError(f"{xend.registry.host_name} is the host itself: pyxen does not {verb} it")
    return xend.find(domid)


async def op_list(xend: Xend, request: JsonObject) -> Any:
    """Entries of all domains, or of `domains`."""
    words = request.get("domains")
    if words is None:
        return await status.domain_list(xend)
    entries = []
    for domid in [find_domid(xend, word) for word in words]:
        if domid == 0:
            entries += (await status.domain_list(xend))[:1]
        else:
            entries += await status.domain_list(xend, [xend.find(domid)])
    return entries


async def op_config(xend: Xend, request: JsonObject) -> Any:
    """What `list -l` shows of all domains, or of `domains`."""
    words = request.get("domains")
    domids = (
        [0, *sorted(xend.domains)] if words is None else [find_domid(xend, word) for word in words]
    )
    shown = []
    for domid in domids:
        if domid == 0:
            shown.append(status.host_config(xend))
        else:
            await status.domain_entry(xend.find(domid))
            shown.append(status.domain_config(xend.find(domid)))
    return shown


async def op_create(xend: Xend, request: JsonObject) -> Any:
    """Create from libxl's JSON `config`; see create for `paused`, `monitor`, `boot`."""
    config, boot = request.get("config"), request.get("boot")
    if not isinstance(config, dict):
        raise UserError("create: no configuration", exit_code=libxl_json.FAILED)
    if boot is not None and not isinstance(boot, dict):
        raise UserError("create: boot is no object", exit_code=libxl_json.FAILED)
    domain = await create(
        xend,
        config,
        paused=bool(request.get("paused")),
        monitor=bool(request.get("monitor", True)),
        boot=boot,
    )
    return {"domid": domain.domid, "name": domain.record.name}


async def op_config_update(xend: Xend, request: JsonObject) -> Any:
    """Keep another `config` for the domain's next start; its name and uuid stay."""
    config = request.get("config")
    if not isinstance(config, dict):
        raise UserError("config_update: no configuration")
    record = guest(xend, request, "configure").record
    libxl_json.domain_spec(config, PLACEHOLDER if bootloader_of(config) else None)
    disk_plan.plan_disks(config, 1)
    c_info = {**libxl_json.section(config, "c_info"), "name": record.name, "uuid": record.uuid}
    record.config = libxl_json.with_defaults({**config, "c_info": c_info})
    xend.registry.save(record)
    return {}


async def op_destroy(xend: Xend, request: JsonObject) -> Any:
    """End a domain at once."""
    domain = guest(xend, request, "destroy")
    await destroy(xend, domain)
    domain.settle(destroyed=True)
    return {"domid": domain.domid}


async def op_pause(xend: Xend, request: JsonObject) -> Any:
    """Pause; counted."""
    await control.pause(guest(xend, request, "pause"))
    return {}


async def op_unpause(xend: Xend, request: JsonObject) -> Any:
    """Undo one pause."""
    await control.unpause(guest(xend, request, "unpause"))
    return {}


async def op_shutdown(xend: Xend, request: JsonObject) -> Any:
    """Ask the guest to shut down: `request` is poweroff or reboot."""
    what = str(request.get("request", "poweroff"))
    if what not in ("poweroff", "reboot", "halt", "suspend"):
        raise UserError(f"no such shutdown request: {what}")
    domain = guest(xend, request, "shut down")
    await control.request_shutdown(xend, domain, what)
    return {"domid": domain.domid}


async def op_wait(xend: Xend, request: JsonObject) -> Any:
    """Answer when the domain has ended and its configured action is done: Domain.settled."""
    domain = guest(xend, request, "wait for")
    return {"domid": domain.domid, **await asyncio.shield(domain.settled)}


async def op_rename(xend: Xend, request: JsonObject) -> Any:
    """Give a domain, or the host, another `name`."""
    name = str(request.get("name", ""))
    domid = find_domid(xend, request.get("domain", ""))
    if domid != 0:
        await control.rename(xend, xend.find(domid), name)
    elif name != xend.registry.host_name:
        xend.registry.check_name(name)
        xend.registry.host_name = name
        xend.store.local.write(f"{xenstore_layout.domain_path(0)}/name", name.encode())
    return {}


async def op_domid(xend: Xend, request: JsonObject) -> Any:
    """The number of a domain of this `name`; only names count here."""
    name = str(request.get("name", ""))
    record = xend.registry.named(name)
    if record is None and name != xend.registry.host_name:
        raise UserError(
            f"Can't get domid of domain name '{name}', maybe this domain does not exist."
        )
    return {"domid": record.domid if record else 0}


async def op_block_attach(xend: Xend, request: JsonObject) -> Any:
    """Attach a `disk`, libxl's JSON of it, to a domain."""
    disk = request.get("disk")
    if not isinstance(disk, dict):
        raise UserError("block_attach: no disk")
    await disks.attach(xend, guest(xend, request, "attach disks to"), disk)
    return {}


async def op_block_detach(xend: Xend, request: JsonObject) -> Any:
    """Take the disk `vdev` from a domain; by `force`, whatever the guest says."""
    domain = guest(xend, request, "detach disks from")
    force = bool(request.get("force"))
    await disks.detach(xend, domain, str(request.get("vdev", "")), force=force)
    return {}


async def op_block_list(xend: Xend, request: JsonObject) -> Any:
    """The disks of a domain; the host has none."""
    domid = find_domid(xend, request.get("domain", ""))
    return disks.disk_list(xend, xend.find(domid).domid) if domid else []


async def op_cd_insert(xend: Xend, request: JsonObject) -> Any:
    """Put the medium `target` into the drive `vdev` of a domain; '' ejects what is in it."""
    domain = guest(xend, request, "change media of")
    vdev, target = str(request.get("vdev", "")), str(request.get("target", ""))
    await disks.insert(xend, domain, vdev, target)
    return {}


async def op_console(xend: Xend, request: JsonObject) -> Any:
    """Where the domain's console is served."""
    return _streams(xend, guest(xend, request, "have a console for"))


async def op_trace(xend: Xend, request: JsonObject) -> Any:
    """Where traces of the domain are served."""
    return _streams(xend, guest(xend, request, "trace"))


def _streams(xend: Xend, domain: Domain) -> JsonObject:
    """The control socket of the domain's process, which serves its streams."""
    control.process_of(domain)
    return {
        "domid": domain.domid,
        "name": domain.record.name,
        "socket": str(xend.paths.domain_run(domain.domid) / "control.sock"),
    }


async def op_hypercalls(xend: Xend, request: JsonObject) -> Any:
    """How often a guest made each hypercall, and what its native path did."""
    domain = guest(xend, request, "count hypercalls of")
    counted = await control.process_of(domain).call("hypercalls")
    native = counted.get("native")
    return {
        "domid": domain.domid,
        "name": domain.record.name,
        "calls": _counters(counted.get("calls")),
        "failures": _counters(counted.get("failures")),
        "native": {
            name: count
            for name, count in (native.items() if isinstance(native, dict) else ())
            if name.isidentifier() and isinstance(count, int)
        },
    }


def _counters(value: object) -> list[int]:
    """What a domain process says is checked: a list of numbers, or an empty one."""
    if isinstance(value, list) and all(isinstance(count, int) for count in value):
        return value
    return []


async def op_dmesg(xend: Xend, request: JsonObject) -> Any:
    """The log of the hypervisor side; `clear` empties it."""
    return xend.dmesg.read(clear=bool(request.get("clear")))


async def op_version(xend: Xend, request: JsonObject) -> Any:
    """Which pyxen this is."""
    return {"version": __version__}


async def op_stop(xend: Xend, request: JsonObject) -> Any:
    """End xend; domains run on."""
    xend.stop.set()
    return {}


class Toolstack:
    """What xend is told to do, and what it does by itself."""

    def __init__(self) -> None:
        self.operations: Mapping[str, Operation] = {
            "list": op_list,
            "config": op_config,
            "create": op_create,
            "config_update": op_config_update,
            "destroy": op_destroy,
            "pause": op_pause,
            "unpause": op_unpause,
            "shutdown": op_shutdown,
            "wait": op_wait,
            "rename": op_rename,
            "domid": op_domid,
            "block_attach": op_block_attach,
            "block_detach": op_block_detach,
            "block_list": op_block_list,
            "cd_insert": op_cd_insert,
            "console": op_console,
            "trace": op_trace,
            "hypercalls": op_hypercalls,
            "dmesg": op_dmesg,
            "version": op_version,
            "stop": op_stop,
        }

    def prepare_host(self, xend: Xend) -> None:
        """Enter Domain-0 into xenstore, or learn its name from there."""
        xenstore_layout.write_host(xend.store.local, host.memory_kib()[0])
        name = xend.store.local.read(f"{xenstore_layout.domain_path(0)}/name")
        xend.registry.host_name = name.decode(errors="replace")

    async def recover(self, xend: Xend, domain: Domain) -> None:
        """See lifecycle.recover."""
        await lifecycle.recover(xend, domain)

    async def domain_ended(self, xend: Xend, domain: Domain) -> None:
        """See lifecycle.domain_ended."""
        await lifecycle.domain_ended(xend, domain)
