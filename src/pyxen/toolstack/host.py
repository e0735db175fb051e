"""Domain-0 is the host: its numbers, from /proc."""

from __future__ import annotations

import os

from pyxen.xend.record import JsonObject


def memory_kib() -> tuple[int, int]:
    """Total and available memory of the host."""
    found = {}
    with open("/proc/meminfo") as lines:
        for line in lines:
            key, _, rest = line.partition(":")
            if key in ("MemTotal", "MemAvailable"):
                found[key] = int(rest.split()[0])
    return found.get("MemTotal", 0), found.get("MemAvailable", 0)


def cpus_online() -> int:
    """How many CPUs run."""
    return os.cpu_count() or 1


def cpu_times_ns() -> list[int]:
    """Time each CPU was busy since the host started, in order of the CPUs.

    Source: proc(5), /proc/stat: user nice system idle iowait irq softirq steal, in clock ticks.
    """
    tick_ns = 1_000_000_000 // os.sysconf("SC_CLK_TCK")
    times = []
    with open("/proc/stat") as lines:
        for line in lines:
            fields = line.split()
            if fields and fields[0].startswith("cpu") and fields[0] != "cpu":
                user, nice, system, _, _, irq, softirq = map(int, fields[1:8])
                times.append((user + nice + system + irq + softirq) * tick_ns)
    return times


def uptime_seconds() -> float:
    """Time since the host started."""
    with open("/proc/uptime") as text:
        return float(text.read().split()[0])


def domain_info(name: str, uuid: str, now: float) -> JsonObject:
    """The host as an entry of the list of domains."""
    total, _ = memory_kib()
    times = cpu_times_ns()
    return {
        "domid": 0,
        "name": name,
        "uuid": uuid,
        "memory_kib": total,
        "maxmem_kib": total,
        "vcpus_online": cpus_online(),
        "state": {"running": True},
        "shutdown_reason": None,
        "cpu_time_ns": sum(times),
        "start_time": now - uptime_seconds(),
        "vcpus": [
            {"id": cpu, "cpu": cpu, "state": "running", "cpu_time_ns": spent}
            for cpu, spent in enumerate(times)
        ],
    }
