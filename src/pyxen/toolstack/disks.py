"""Attach disks to a domain, detach them, change what is in a drive, list them.

xend writes the nodes that libxl writes and waits for what becomes of them; the back end in the
domain's process finds them by itself (backend/xenbus.py). An attach that fails leaves nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from typing import TypeVar

from pyxen.abi.io.xenbus import (
    XenbusStateClosed,
    XenbusStateClosing,
    XenbusStateConnected,
    XenbusStateInitialising,
)
from pyxen.config.vdev import vdev_number
from pyxen.errors import UserError
from pyxen.toolstack import control
from pyxen.toolstack.disk_plan import DiskPlan, front, params, plan_disk, shadow
from pyxen.xend.daemon import Xend
from pyxen.xend.domain import Domain
from pyxen.xend.record import JsonObject
from pyxen.xenstored.local import LocalClient, LocalTransaction

OPEN_SECONDS = 30.0
"""How long opening an image may take."""
CONNECT_SECONDS = 30.0
"""How long a running guest may take to connect to a new disk."""
DETACH_SECONDS = 10.0
"""How long libxl waits for a guest to let a device go (LIBXL_DESTROY_TIMEOUT)."""
ERROR_BYTES = 200

T = TypeVar("T")
_tokens = count()


# --- attach ---------------------------------------------------------------------------------------


async def attach_all(xend: Xend, domain: Domain, plans: list[DiskPlan]) -> None:
    """Attach the disks of a domain that is being made; its images are open then.

    UserError, with nodes left: who makes the domain removes them all.
    """
    for plan in plans:
        _write_nodes(xend.store.local, domain.domid, plan)
    for plan in plans:
        await _opened(xend, domain, plan)


async def attach(xend: Xend, domain: Domain, disk: JsonObject) -> None:
    """Attach a disk to a domain: its guest has it then, unless it is paused. UserError."""
    plan = plan_disk(disk)
    control.process_of(domain)
    if xend.store.local.exists(shadow(domain.domid, plan.devid)):
        raise UserError(
            f"{plan.vdev}: the device already exists in domain {domain.domid}",
            f"`xl block-list {domain.domid}` shows what there is",
        )
    _write_nodes(xend.store.local, domain.domid, plan)
    _keep(xend, domain, [*_kept(domain), plan.config])
    try:
        await _opened(xend, domain, plan)
        await _connected(xend, domain, plan)
    except BaseException:
        _forget(xend, domain, plan.devid)
        raise
    xend.dmesg.say(f"d{domain.domid}: attached {plan.vdev}, {plan.target or 'empty'}")


def _write_nodes(store: LocalClient, domid: int, plan: DiskPlan) -> None:
    back, ahead, ours = plan.back(domid), front(domid, plan.devid), shadow(domid, plan.devid)
    with store.transaction() as t:
        t.rm(back)
        t.rm(ahead)
        t.mkdir(back, ["n0", f"r{domid}"])
        t.mkdir(ahead, [f"n{domid}", "r0"])
        _write_all(t, back, plan.back_nodes(domid))
        _write_all(t, ahead, plan.front_nodes(domid))
        _write_all(t, ours, {"backend": back, **plan.back_nodes(domid)})


def _write_all(t: LocalTransaction, directory: str, nodes: dict[str, str]) -> None:
    for key, value in nodes.items():
        t.write(f"{directory}/{key}", value.encode(errors="surrogateescape"))


async def _opened(xend: Xend, domain: Domain, plan: DiskPlan) -> None:
    """Wait until the back end has opened the image. UserError as it reports it."""
    back = plan.back(domain.domid)
    store = xend.store.local

    def status() -> bytes | None:
        value = _read(store, f"{back}/hotplug-status")
        return value if value in (b"connected", b"error") else None

    found = await _wait(xend, domain, [f"{back}/hotplug-status"], status, OPEN_SECONDS)
    if found is None:
        raise UserError(
            f"{plan.vdev}: {plan.target} was not opened in {OPEN_SECONDS:.0f} s",
            "is it on a file system that does not answer?",
            3 if domain.record.phase == "building" else 1,
        )
    if found == b"error":
        error = _read(store, f"{back}/hotplug-error") or b""
        message, _, hint = error.decode(errors="replace").partition("\n")
        raise UserError(
            message or f"{plan.vdev}: cannot be attached",
            hint,
            3 if domain.record.phase == "building" else 1,
        )


async def _connected(xend: Xend, domain: Domain, plan: DiskPlan) -> None:
    """Wait until the guest has the disk; not for one that stands still. UserError."""
    states = [f"{end}/state" for end in (plan.back(domain.domid), front(domain.domid, plan.devid))]
    store = xend.store.local

    def connected() -> bool | None:
        both = all(_number(store, state) == XenbusStateConnected for state in states)
        return True if both else None

    if await _stands_still(domain):
        return
    if await _wait(xend, domain, states, connected, CONNECT_SECONDS) is None:
        if await _stands_still(domain):
            return
        raise UserError(
            f"the guest did not take {plan.vdev} in {CONNECT_SECONDS:.0f} s, so it is gone again",
            f"has it a driver for Xen's block devices?{_guest_error(store, domain, plan.devid)}",
        )


# --- detach ---------------------------------------------------------------------------------------


async def detach(xend: Xend, domain: Domain, vdev: str, *, force: bool) -> None:
    """Take a disk from a domain; everything written is on the host then.

    force: whether the guest lets it go or not. UserError.
    """
    domid, store = domain.domid, xend.store.local
    devid = _attached(store, domid, vdev)
    ahead = front(domid, devid)
    control.process_of(domain)
    is_connected = _number(store, f"{ahead}/state") != XenbusStateInitialising
    if is_connected and not force and domain.record.shutdown_reason is None:
        status = await control.process_of(domain).call("status")
        if status.get("pause_count"):
            raise UserError(
                f"domain {domid} is paused, so it cannot let {vdev} go",
                f"xl unpause {domid}, or take it by force: xl block-detach --force",
            )
    back = _close(store, domid, devid, gone=force or domain.record.shutdown_reason is not None)

    def closed() -> bool | None:
        state = _number(store, f"{back}/state")
        return True if state in (XenbusStateClosed, None) else None

    if await _wait(xend, domain, [f"{back}/state"], closed, DETACH_SECONDS) is None:
        raise UserError(
            f"the guest did not let {vdev} go in {DETACH_SECONDS:.0f} s: it is in use"
            f"{_guest_error(store, domain, devid)}",
            "unmount it in the guest and detach it again, or take it by force: "
            "xl block-detach --force",
        )
    _forget(xend, domain, devid)
    xend.dmesg.say(f"d{domid}: detached {vdev}")


def _close(store: LocalClient, domid: int, devid: int, *, gone: bool) -> str:
    """Ask both ends to close, as libxl does; the back end's directory. gone: the front end is."""
    back = (_read(store, f"{shadow(domid, devid)}/backend") or b"").decode()
    with store.transaction() as t:
        if gone:
            t.rm(front(domid, devid))
        if t.exists(f"{back}/state"):
            t.write(f"{back}/online", b"0")
            if t.read(f"{back}/state") != str(XenbusStateClosed).encode():
                t.write(f"{back}/state", str(XenbusStateClosing))
    return back


def _attached(store: LocalClient, domid: int, vdev: str) -> int:
    """The number of an attached disk. UserError if there is none."""
    try:
        devid = vdev_number(vdev)
    except UserError as error:
        raise UserError(error.message, error.hint, 1) from None
    if not store.exists(f"{shadow(domid, devid)}/backend"):
        raise UserError(f"Device {vdev} not connected.", f"`xl block-list {domid}` shows which are")
    return devid


def _forget(xend: Xend, domain: Domain, devid: int) -> None:
    """Remove all nodes of a disk, and what is kept of it."""
    store, domid = xend.store.local, domain.domid
    with store.transaction() as t:
        back = t.read(f"{shadow(domid, devid)}/backend").decode()
        for path in (back, front(domid, devid), shadow(domid, devid)):
            t.rm(path)
        for parent in (back.rpartition("/")[0], f"/libxl/{domid}/device/vbd"):
            if t.exists(parent) and not t.directory(parent):
                t.rm(parent)
    _keep(xend, domain, [d for d in _kept(domain) if vdev_number(str(d["vdev"])) != devid])


# --- media ----------------------------------------------------------------------------------------


async def insert(xend: Xend, domain: Domain, vdev: str, target: str) -> None:
    """Put another medium into a CD-ROM drive; '' empties it. UserError, with the old one in it."""
    domid, store = domain.domid, xend.store.local
    devid = _attached(store, domid, vdev)
    ours = shadow(domid, devid)
    if _read(store, f"{ours}/device-type") != b"cdrom":
        raise UserError(f"Virtual device {vdev} is not a CDROM device", "attach one: devtype=cdrom")
    control.process_of(domain)
    kept = _kept(domain)
    drive = next((d for d in kept if vdev_number(str(d["vdev"])) == devid), {})
    back = (_read(store, f"{ours}/backend") or b"").decode()
    kind = back.split("/")[5]
    old = (_read(store, f"{ours}/params") or b"").decode(errors="surrogateescape")
    is_drive = {"vdev": vdev, "is_cdrom": 1, "removable": 1}
    new = plan_disk(_with_medium({**is_drive, **drive}, target))
    _change_medium(store, back, ours, params(kind, new.format, new.target))
    try:
        # The drive stays what it was made as.
        await _opened(xend, domain, replace(new, kind=kind))
    except BaseException:
        _change_medium(store, back, ours, old)
        raise
    # It is not in there if `config-update` took it out: for the next start it is gone then.
    _keep(xend, domain, [new.config if d is drive else d for d in kept])


def _with_medium(disk: JsonObject, target: str) -> JsonObject:
    changed = {"pdev_path": target, **disk}
    changed["pdev_path"], changed["format"] = target, "raw" if target else "empty"
    return changed


def _change_medium(store: LocalClient, back: str, ours: str, medium: str) -> None:
    with store.transaction() as t:
        for directory in (back, ours):
            t.write(f"{directory}/params", medium.encode(errors="surrogateescape"))
        t.write(f"{back}/hotplug-status", b"")


# --- list -----------------------------------------------------------------------------------------


def disk_list(xend: Xend, domid: int) -> list[JsonObject]:
    """What `xl block-list` shows of a domain's disks; a number that is not there is -1."""
    store, found = xend.store.local, []
    of_domain = f"/libxl/{domid}/device/vbd"
    for devid in store.directory(of_domain) if store.exists(of_domain) else []:
        ahead = front(domid, int(devid))
        backend = _read(store, f"{of_domain}/{devid}/backend")
        if backend is not None:
            numbers = {
                key: -1 if (number := _number(store, f"{ahead}/{node}")) is None else number
                for key, node in (
                    ("state", "state"),
                    ("evtch", "event-channel"),
                    ("rref", "ring-ref"),
                )
            }
            found.append(
                {"devid": int(devid), "frontend_id": domid, "backend": backend.decode(), **numbers}
            )
    return found


# --- inside ---------------------------------------------------------------------------------------


def _kept(domain: Domain) -> list[JsonObject]:
    """The disks in the domain's kept configuration."""
    disks = domain.record.config.get("disks", [])
    return disks if isinstance(disks, list) else []


def _keep(xend: Xend, domain: Domain, disks: list[JsonObject]) -> None:
    config = {key: value for key, value in domain.record.config.items() if key != "disks"}
    if disks:
        # Behind b_info, where libxl's JSON has it.
        at = list(config).index("b_info") + 1 if "b_info" in config else len(config)
        items = list(config.items())
        config = dict([*items[:at], ("disks", disks), *items[at:]])
    domain.record.config = config
    xend.registry.save(domain.record)


async def _stands_still(domain: Domain) -> bool:
    """Whether the guest cannot do anything now."""
    status = await control.process_of(domain).call("status")
    return bool(status.get("pause_count")) or domain.record.shutdown_reason is not None


def _read(store: LocalClient, path: str) -> bytes | None:
    return store.read(path) if store.exists(path) else None


def _number(store: LocalClient, path: str) -> int | None:
    """A number that the guest may have written."""
    value = _read(store, path)
    if value is None:
        return None
    return int(value) if value.isdigit() and len(value) < 11 else 0


def _guest_error(store: LocalClient, domain: Domain, devid: int) -> str:
    """What the guest says of a device in its error directory, if anything."""
    path = f"/local/domain/{domain.domid}/error/device/vbd/{devid}/error"
    said = (_read(store, path) or b"")[:ERROR_BYTES].decode(errors="replace")
    text = "".join(c for c in said if c.isprintable())
    return f" (the guest says: {text})" if text else ""


async def _wait(
    xend: Xend, domain: Domain, paths: list[str], look: Callable[[], T | None], seconds: float
) -> T | None:
    """What `look` finds once one of the nodes changed; None if that takes too long.

    UserError if the domain ends meanwhile.
    """
    changed = asyncio.Event()
    token = f"disk-{next(_tokens)}"
    process = control.process_of(domain)
    for path in paths:
        xend.store.local.watch(path, token, lambda *_: changed.set())
    gone = asyncio.ensure_future(process.gone.wait())
    gone.add_done_callback(lambda _: changed.set())
    try:
        async with asyncio.timeout(seconds):
            while (found := look()) is None:
                if process.gone.is_set():
                    raise UserError(f"domain {domain.domid} is going away")
                await changed.wait()
                changed.clear()
            return found
    except TimeoutError:
        return None
    finally:
        gone.cancel()
        for path in paths:
            xend.store.local.unwatch(path, token)
