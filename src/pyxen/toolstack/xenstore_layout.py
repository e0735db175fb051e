"""The xenstore nodes of a domain, as libxl writes them for a PV guest.

Source: docs/misc/xenstore-paths.pandoc. What the guest may only read belongs to the host and is
readable for the guest (n0,rN); what it writes itself belongs to the guest (nN). A new node has the
permissions of its parent.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyxen.xend.record import DomainRecord
from pyxen.xend.registry import HOST_NAME

if TYPE_CHECKING:
    from pyxen.xenstored.local import LocalClient, LocalTransaction

CONSOLE_LIMIT_BYTES = 1 << 20
XENBUS_INITIALISING = "1"

GUEST_WRITES = (
    "device/suspend/event-channel",
    "control/shutdown",
    "control/feature-poweroff",
    "control/feature-reboot",
    "control/feature-suspend",
    "control/sysrq",
    "data",
    "drivers",
    "feature",
    "attr",
    "error",
)
"""Nodes of the guest's own directory that belong to the guest."""


def domain_path(domid: int) -> str:
    """The guest's own directory; GET_DOMAIN_PATH says so too."""
    return f"/local/domain/{domid}"


def write_host(store: LocalClient, total_kib: int) -> None:
    """The nodes of Domain-0 and of xenstored itself; what is there already stays."""
    host = domain_path(0)
    nodes = {
        f"{host}/name": HOST_NAME,
        f"{host}/domid": "0",
        f"{host}/memory/static-max": str(total_kib),
        f"{host}/memory/target": str(total_kib),
        "/local/pool/0/name": "Pool-0",
        "/tool/xenstored": "pyxen",
        "/vm": "",
        "/libxl": "",
    }
    for path, value in nodes.items():
        if not store.exists(path):
            store.write(path, value.encode())


def write_domain(store: LocalClient, record: DomainRecord) -> None:
    """Every node that a domain has before its guest runs, in one transaction."""
    with store.transaction() as t:
        _write_identity(t, record)
        _write_build(t, record)
        _write_console(t, record)


def _read_only(domid: int) -> list[str]:
    return ["n0", f"r{domid}"]


def _node(t: LocalTransaction, path: str, perms: list[str]) -> None:
    t.write(path, b"")
    t.set_perms(path, perms)


def _write_identity(t: LocalTransaction, record: DomainRecord) -> None:
    """Who it is, and the nodes that belong to the guest."""
    domid, read_only = record.domid, _read_only(record.domid)
    home, vm, libxl = domain_path(domid), f"/vm/{record.uuid}", f"/libxl/{domid}"
    for path in (home, vm, libxl):
        t.rm(path)
    _node(t, home, read_only)
    _node(t, vm, read_only)
    t.write(f"{libxl}/device", b"")
    t.write(f"{libxl}/dm-version", b"qemu_xen")
    t.write(f"{libxl}/type", b"pv")
    t.write(f"{home}/vm", vm.encode())
    t.write(f"{home}/name", record.name.encode())
    for directory in ("cpu", "memory", "device", "device/suspend", "control"):
        _node(t, f"{home}/{directory}", read_only)
    for path in GUEST_WRITES:
        _node(t, f"{home}/{path}", [f"n{domid}"])
    for feature in ("multiprocessor-suspend", "xs_reset_watches"):
        t.write(f"{home}/control/platform-feature-{feature}", b"1")
    t.write(f"{vm}/uuid", record.uuid.encode())
    t.write(f"{vm}/name", record.name.encode())


def _write_build(t: LocalTransaction, record: DomainRecord) -> None:
    """What was built, and from what."""
    spec, home, vm = record.spec, domain_path(record.domid), f"/vm/{record.uuid}"
    nodes = {
        f"{home}/memory/static-max": spec["maxmem_kib"],
        f"{home}/memory/target": spec["memory_kib"],
        f"{home}/memory/videoram": 0,
        f"{home}/domid": record.domid,
        f"{home}/store/port": spec["store_port"],
        f"{home}/store/ring-ref": record.built.get("store_mfn", 0),
        f"{vm}/image/ostype": "linux",
        f"{vm}/image/kernel": spec["kernel"],
        f"{vm}/start_time": f"{record.start_time:.2f}",
    }
    if spec.get("ramdisk"):
        nodes[f"{vm}/image/ramdisk"] = spec["ramdisk"]
    if spec.get("cmdline"):
        nodes[f"{vm}/image/cmdline"] = spec["cmdline"]
    for vcpu in range(spec["maxvcpus"]):
        online = "online" if vcpu < spec["vcpus"] else "offline"
        nodes[f"{home}/cpu/{vcpu}/availability"] = online
    for path, value in nodes.items():
        t.write(path, str(value).encode())


def _write_console(t: LocalTransaction, record: DomainRecord) -> None:
    """The primary console: no ring negotiation, its page and port are given by the builder."""
    domid, read_only = record.domid, _read_only(record.domid)
    front, back = f"{domain_path(domid)}/console", f"{domain_path(0)}/backend/console/{domid}/0"
    shadow = f"/libxl/{domid}/device/console/0"
    backend_nodes = {
        "frontend": front,
        "frontend-id": str(domid),
        "online": "1",
        "state": XENBUS_INITIALISING,
        "protocol": "vt100",
    }
    _node(t, back, read_only)
    for name, value in backend_nodes.items():
        t.write(f"{back}/{name}", value.encode())
        t.write(f"{shadow}/{name}", value.encode())
    t.write(f"{shadow}/backend", back.encode())
    _node(t, front, read_only)
    frontend_nodes = {
        "backend": back,
        "limit": CONSOLE_LIMIT_BYTES,
        "type": "xenconsoled",
        "output": "pty",
        "tty": record.built.get("tty") or "",
        "port": record.spec["console_port"],
        "ring-ref": record.built.get("console_mfn", 0),
    }
    for name, frontend_value in frontend_nodes.items():
        t.write(f"{front}/{name}", str(frontend_value).encode())
    t.write(f"{front}/backend-id", b"0")
    t.set_perms(f"{front}/backend-id", [f"n{domid}", "r0"])


def rename_domain(store: LocalClient, record: DomainRecord) -> None:
    """Enter a domain's new name."""
    store.write(f"{domain_path(record.domid)}/name", record.name.encode())
    store.write(f"/vm/{record.uuid}/name", record.name.encode())


def remove_domain(store: LocalClient, domid: int, uuid: str | None) -> None:
    """Remove every node of a domain; `uuid` None leaves /vm alone (another domain uses it)."""
    with store.transaction() as t:
        t.rm(domain_path(domid))
        t.rm(f"/libxl/{domid}")
        if uuid is not None:
            t.rm(f"/vm/{uuid}")
        backends = f"{domain_path(0)}/backend"
        kinds = t.directory(backends) if t.exists(backends) else []
        for kind in kinds:
            t.rm(f"{backends}/{kind}/{domid}")
            if not t.directory(f"{backends}/{kind}"):
                t.rm(f"{backends}/{kind}")
