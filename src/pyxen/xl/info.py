"""xl info, dmesg: what this Xen is, and what it had to say."""

from __future__ import annotations

import os
import platform
import sys

from pyxen import __version__
from pyxen.hypervisor import version
from pyxen.toolstack import host
from pyxen.xend.client import Client
from pyxen.xl.command import Command, Globals


def run_info(command: Command, words: list[str], globals_: Globals) -> int:
    """xl info."""
    given = command.parse(words)
    for key, value in _host():
        _line(key, value)
    if given.has("n"):
        _topology()
    for key, value in _xen():
        _line(key, value)
    return 0


def _line(key: str, value: object) -> None:
    print(f"{key:<23}: {value}")


def _host() -> list[tuple[str, object]]:
    system = os.uname()
    total, free = host.memory_kib()
    cpus = host.cpus_online()
    return [
        ("host", system.nodename),
        ("release", system.release),
        ("version", system.version),
        ("machine", system.machine),
        ("nr_cpus", cpus),
        ("max_cpu_id", cpus - 1),
        ("nr_nodes", 1),
        ("cores_per_socket", cpus),
        ("threads_per_core", 1),
        ("cpu_mhz", _cpu_mhz()),
        ("virt_caps", "pv gnttab-v1"),
        ("total_memory", total // 1024),
        ("free_memory", free // 1024),
        ("sharing_freed_memory", 0),
        ("sharing_used_memory", 0),
        ("outstanding_claims", 0),
        ("free_cpus", 0),
    ]


def _xen() -> list[tuple[str, object]]:
    major, minor = version.XEN_MAJOR, version.XEN_MINOR
    return [
        ("xen_major", major),
        ("xen_minor", minor),
        ("xen_extra", version.EXTRAVERSION),
        ("xen_version", f"{major}.{minor}{version.EXTRAVERSION}"),
        ("xen_caps", version.CAPABILITIES),
        ("xen_scheduler", "credit2"),
        ("xen_pagesize", 4096),
        ("platform_params", "virt_start=0xffff800000000000"),
        ("xen_changeset", f"pyxen {__version__}"),
        ("xen_commandline", ""),
        ("cc_compiler", f"{platform.python_implementation()} {platform.python_version()}"),
        ("cc_compile_by", "pyxen"),
        ("cc_compile_domain", ""),
        ("cc_compile_date", ""),
        ("build_id", ""),
        ("xend_config_format", 4),
    ]


def _cpu_mhz() -> str:
    """Source: proc(5), /proc/cpuinfo."""
    with open("/proc/cpuinfo") as lines:
        for line in lines:
            if line.startswith("cpu MHz"):
                return line.partition(":")[2].strip()
    return "0.000"


def _topology() -> None:
    print("cpu_topology           :\ncpu:    core    socket     node")
    for cpu in range(host.cpus_online()):
        print(f"{cpu:>3}:    {cpu:>4}     {0:>4}     {0:>4}")
    print("device topology        :\ndevice           node\nNo device topology data available")
    total, free = host.memory_kib()
    print("numa_info              :\nnode:    memsize    memfree    distances")
    print(f"{0:>4}:    {total // 1024:>6}     {free // 1024:>6}      10")


def run_dmesg(command: Command, words: list[str], globals_: Globals) -> int:
    """xl dmesg."""
    given = command.parse(words)
    with Client.connect() as xend:
        sys.stdout.write(xend.call("dmesg", clear=given.has("c")))
    return 0
