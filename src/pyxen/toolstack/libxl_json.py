"""A domain's configuration as libxl's JSON: what xl sends, what is kept, what `list -l` shows.

Source: tools/libs/light/libxl_types.idl. A key that has its default may be absent.
"""

from __future__ import annotations

from typing import Any

from pyxen.errors import UserError
from pyxen.xend.record import JsonObject
from pyxen.xend.registry import HOST_UUID

INVALID_DOMID = 0xFFFFFFFF
DEFAULT_MEMORY_KIB = 32 << 10
DEFAULT_EVENT_CHANNELS = 1023
GRANT_LIMITS = ("max_grant_frames", "max_maptrack_frames", "max_grant_version")
"""Without them a domain has the hypervisor's own limits."""

FAILED = 3
"""What xl exits with when a domain cannot be created."""


def section(config: JsonObject, name: str) -> JsonObject:
    """One of the objects in a configuration. UserError if it is of another type."""
    found = config.get(name, {})
    if not isinstance(found, dict):
        raise UserError(f"configuration: {name} is no object", exit_code=FAILED)
    return found


def name_of(config: JsonObject) -> str:
    """The domain's name. UserError if there is none."""
    name = section(config, "c_info").get("name")
    if not isinstance(name, str) or not name:
        raise UserError("the domain has no name", 'add `name = "…"`', FAILED)
    return name


def uuid_of(config: JsonObject) -> str:
    """The domain's uuid; all zeros if it has none."""
    uuid = section(config, "c_info").get("uuid", HOST_UUID)
    if not isinstance(uuid, str) or "/" in uuid:
        raise UserError(f"bad uuid {uuid!r}", exit_code=FAILED)
    return uuid.lower()


def with_defaults(config: JsonObject) -> JsonObject:
    """The configuration as libxl keeps it: defaults entered where libxl enters them."""
    c_info, b_info = section(config, "c_info"), section(config, "b_info")
    kept = dict(config)
    kept["c_info"] = _after(c_info, "name", {"domid": INVALID_DOMID})
    kept["b_info"] = _after(b_info, "target_memkb", {"video_memkb": 0})
    kept["b_info"]["arch_x86"] = {"msr_relaxed": "False", **section(b_info, "arch_x86")}
    return kept


def live_config(config: JsonObject, name: str, target_kib: int | None) -> JsonObject:
    """What `xl list -l` shows of a running domain: the kept configuration, brought up to date."""
    shown = dict(config)
    shown["c_info"] = {**section(config, "c_info"), "name": name}
    b_info = dict(section(config, "b_info"))
    b_info["sched_params"] = {
        "sched": "credit2",
        "weight": 256,
        "cap": 0,
        **section(b_info, "sched_params"),
    }
    if target_kib is not None:
        b_info["target_memkb"] = target_kib
    shown["b_info"] = b_info
    return shown


def host_config(name: str, total_kib: int) -> JsonObject:
    """What `xl list -l` shows of the host."""
    return {
        "c_info": {"type": "pv", "name": name},
        "b_info": {
            "max_memkb": total_kib,
            "target_memkb": total_kib,
            "sched_params": {"sched": "credit2", "weight": 256, "cap": 0},
            "type.pv": {},
            "arch_arm": {},
            "arch_x86": {},
        },
    }


def domain_spec(config: JsonObject, boot: JsonObject | None = None) -> JsonObject:
    """What a domain process has to know of the configuration. UserError if it makes no sense.

    `boot` is what a boot loader found, instead of the configuration's `kernel`, `ramdisk` and
    `cmdline`.
    """
    c_info, b_info = section(config, "c_info"), section(config, "b_info")
    kind = c_info.get("type", "pv")
    if kind != "pv":
        raise UserError(f"guests of type {kind} are not supported yet", 'use `type = "pv"`', FAILED)
    start = b_info if boot is None else boot
    kernel = start.get("kernel")
    if not isinstance(kernel, str) or not kernel:
        raise UserError("the domain has no kernel", 'add `kernel = "/path"`', FAILED)
    target = _number(b_info, "target_memkb", DEFAULT_MEMORY_KIB)
    maxmem = max(_number(b_info, "max_memkb", target), target)
    maxvcpus = _number(b_info, "max_vcpus", 1)
    available = b_info.get("avail_vcpus", [0])
    vcpus = len(available) if isinstance(available, list) else 1
    if not 1 <= vcpus <= maxvcpus:
        raise UserError(f"{vcpus} vcpus of at most {maxvcpus}", "mind `maxvcpus`", FAILED)
    return {
        "type": "pv",
        "kernel": kernel,
        "ramdisk": start.get("ramdisk"),
        "cmdline": start.get("cmdline", ""),
        "memory_kib": target,
        "maxmem_kib": maxmem,
        "vcpus": vcpus,
        "maxvcpus": maxvcpus,
        "event_channels": _event_channels(b_info),
        **{key: _number(b_info, key, 0, low=0) for key in GRANT_LIMITS if key in b_info},
        "store_port": 1,
        "console_port": 2,
        **{key: config[key] for key in config if key.startswith("on_")},
    }


def _event_channels(b_info: JsonObject) -> int:
    """The highest port; libxl reads 0 as "not said"."""
    if not b_info.get("event_channels"):
        return DEFAULT_EVENT_CHANNELS
    return _number(b_info, "event_channels", DEFAULT_EVENT_CHANNELS)


def _number(of: JsonObject, key: str, default: int, low: int = 1) -> int:
    value: Any = of.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value < 1 << 40:
        raise UserError(f"configuration: {key} is {value!r}", exit_code=FAILED)
    return value


def _after(of: JsonObject, key: str, more: JsonObject) -> JsonObject:
    """A copy with `more` entered behind `key`: people read this, so order matters."""
    entered: JsonObject = {}
    for name, value in of.items():
        entered[name] = value
        if name == key:
            entered.update({new: of.get(new, default) for new, default in more.items()})
    for new, default in more.items():
        entered.setdefault(new, default)
    return entered
