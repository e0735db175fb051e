"""Make a domain: all of it, or nothing."""

from __future__ import annotations

import logging
import shutil
import time
from contextlib import AsyncExitStack
from pathlib import Path

from pyxen.errors import UserError
from pyxen.toolstack import disk_plan, disks, libxl_json, xenstore_layout
from pyxen.toolstack.boot_files import boot_files
from pyxen.toolstack.destroy import destroy, remove_nodes
from pyxen.xend.daemon import Xend
from pyxen.xend.domain import Domain
from pyxen.xend.process import DomainProcess, ProcessGone
from pyxen.xend.record import DomainRecord, JsonObject

log = logging.getLogger(__name__)

LOGS_KEPT = 5
LOG_TAIL_BYTES = 2000
TTY_BYTES = 256


async def create(
    xend: Xend,
    config: JsonObject,
    *,
    paused: bool = False,
    monitor: bool = True,
    predecessor: DomainRecord | None = None,
    restarts: int = 0,
    boot: JsonObject | None = None,
) -> Domain:
    """Create a domain from libxl's JSON. On any failure, and when cancelled, nothing remains.

    `predecessor` is the domain that this one replaces (it may still hold the uuid), `restarts` how
    often that happened in quick succession. `boot` is what the caller's boot loader found: see
    boot_files. Raises UserError.
    """
    plans = disk_plan.plan_disks(config, libxl_json.FAILED)
    async with boot_files(xend, config, boot) as found:
        spec = libxl_json.domain_spec(config, found)
        domain, process = await _make(xend, config, spec, plans, monitor, predecessor, restarts)
    # From here on it exists, and ends as every domain does.
    xend.enter(domain)
    if not paused:
        try:
            await process.call("unpause")
        except BaseException:
            await destroy(xend, domain)
            raise
    record = domain.record
    xend.dmesg.say(f"d{record.domid}: created, {record.name}")
    xend.events.publish("created", domid=record.domid, name=record.name)
    return domain


async def _make(
    xend: Xend,
    config: JsonObject,
    spec: JsonObject,
    plans: list[disk_plan.DiskPlan],
    monitor: bool,
    predecessor: DomainRecord | None,
    restarts: int,
) -> tuple[Domain, DomainProcess]:
    """Everything that can fail, and is undone then."""
    async with AsyncExitStack() as undo:
        record = _enter(xend, config, spec, predecessor, undo)
        record.monitor, record.restarts = monitor, restarts
        domain = Domain(record)
        xend.domains[record.domid] = domain
        undo.callback(xend.domains.pop, record.domid, None)
        process = await _build(xend, domain, undo)
        _introduce(xend, domain, undo)
        domain.serve_backends(xend.store)
        undo.push_async_callback(domain.release_xenstore)
        await disks.attach_all(xend, domain, plans)
        undo.pop_all()
    return domain, process


def _enter(
    xend: Xend,
    config: JsonObject,
    spec: JsonObject,
    predecessor: DomainRecord | None,
    undo: AsyncExitStack,
) -> DomainRecord:
    """Number the domain and write down what is to become of it."""
    name, uuid = libxl_json.name_of(config), libxl_json.uuid_of(config)
    namesake = predecessor.domid if predecessor else None
    record = xend.registry.add(name, uuid, libxl_json.with_defaults(config), namesake=namesake)
    undo.callback(xend.registry.remove, record.domid)
    record.restarted = predecessor is not None
    record.start_time = time.time()
    record.spec = {
        "domid": record.domid,
        "uuid": uuid,
        "name": name,
        **spec,
        "state_dir": str(xend.paths.state),
        "run_dir": str(xend.paths.domain_run(record.domid)),
        "log_dir": str(_log_dir(xend.paths.domain_logs(name), record.domid)),
    }
    return record


async def _build(xend: Xend, domain: Domain, undo: AsyncExitStack) -> DomainProcess:
    """The domain's process, with the guest built and paused in it."""
    undo.push_async_callback(_end_process, xend, domain)
    try:
        process = await xend.start_process(domain)
        domain.record.built = _checked(await process.call("build"))
    except (ProcessGone, OSError) as error:
        raise UserError(
            f"the process of domain {domain.record.name!r} failed: {error}",
            _log_tail(Path(domain.record.spec["log_dir"]) / "domain.log"),
            libxl_json.FAILED,
        ) from error
    xend.registry.save(domain.record)
    return process


def _checked(built: JsonObject) -> JsonObject:
    """What `build` answered, if it is what it should be. ProcessGone: it is of no use then."""
    frames = {key: built.get(key) for key in ("store_mfn", "console_mfn")}
    if not all(isinstance(mfn, int) and 0 <= mfn < 1 << 40 for mfn in frames.values()):
        raise ProcessGone(f"it built {built!r:.200}")
    return {**frames, "tty": str(built.get("tty") or "")[:TTY_BYTES]}


async def _end_process(xend: Xend, domain: Domain) -> None:
    if domain.process is not None:
        await domain.process.end()
    shutil.rmtree(xend.paths.domain_run(domain.domid), ignore_errors=True)


def _introduce(xend: Xend, domain: Domain, undo: AsyncExitStack) -> None:
    """Make the domain known to xenstore."""
    record = domain.record
    undo.callback(remove_nodes, xend, record)
    xenstore_layout.write_domain(xend.store.local, record)
    undo.callback(xend.store.release, record.domid)
    xend.store.introduce(record.domid, record.built.get("store_mfn", 0), record.spec["store_port"])


def _log_dir(of_name: Path, domid: int) -> Path:
    """A directory of its own for each run, the last few of which are kept."""
    if of_name.is_dir():
        runs = sorted((d for d in of_name.iterdir() if d.name.isdigit()), key=_by_number)
        for old in runs[: max(0, len(runs) - LOGS_KEPT + 1)]:
            shutil.rmtree(old, ignore_errors=True)
    return of_name / str(domid)


def _by_number(directory: Path) -> int:
    return int(directory.name)


def _log_tail(path: Path) -> str:
    """The end of what the domain process said: the best hint there is when it died."""
    try:
        text = path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace").strip()
    except OSError:
        return ""
    return f"its last words ({path}):\n{text}" if text else ""
