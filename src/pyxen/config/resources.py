"""Memory and CPUs of a guest: what `memory`, `maxmem`, `vcpus`, `maxvcpus`, `vnuma`, `cpus` and
`cpus_soft` decide together.

Differs from xl 4.17: `cpus` counts without `vcpus` too, for the one vCPU there is then (xl 4.17
loses it; later ones do not); a CPU the host does not have is named.
"""

from pyxen.config.cpus import Host, parse_cpus
from pyxen.config.domain_config import DEFAULT_MEMORY_KIB, DomainConfig
from pyxen.config.record import Bitmap
from pyxen.config.settings import Settings
from pyxen.config.vnuma import MAX_VCPUS, parse_vnuma


def read(cfg: DomainConfig, s: Settings, host: Host) -> None:
    """Read them all; memory and maxmem are already stored."""
    vcpus = _count(s, "vcpus")
    maximum = _count(s, "maxvcpus")
    cfg.b_info.avail_vcpus = list(range(vcpus))
    cfg.b_info.max_vcpus = maximum
    _vnuma(cfg, s, host)
    if cfg.b_info.max_memkb is None:
        cfg.b_info.max_memkb = cfg.b_info.target_memkb
    if cfg.b_info.max_vcpus == 0:
        cfg.b_info.max_vcpus = vcpus
    if cfg.b_info.max_vcpus < vcpus:
        hint = "raise maxvcpus, or leave it out"
        s.refuse("maxvcpus", f"maxvcpus ({cfg.max_vcpus}) is less than vcpus ({vcpus})", hint)
        return
    _warn_about_memory(cfg, s)
    cfg.b_info.vcpu_hard_affinity = _affinity(cfg, s, "cpus", host)
    cfg.b_info.vcpu_soft_affinity = _affinity(cfg, s, "cpus_soft", host)
    if not all(cfg.b_info.vcpu_hard_affinity):
        hint = f"this host has CPUs 0 to {host.cpus - 1}"
        s.refuse("cpus", "cpus leaves a vCPU no CPU to run on", hint)


def _count(s: Settings, name: str) -> int:
    count = s.number(name) or 0
    if 0 <= count <= MAX_VCPUS:
        return count
    s.refuse(name, f"{name}: {count} is not between 0 and {MAX_VCPUS}")
    return 0


def _vnuma(cfg: DomainConfig, s: Settings, host: Host) -> None:
    rows = s.lists("vnuma")
    if not rows:
        return
    nodes = s.guard("vnuma", parse_vnuma, rows, host, lambda message: s.warn("vnuma", message))
    if not nodes:
        return
    b_info = cfg.b_info
    vcpus = sum(len(node.vcpus) for node in nodes)
    memkb = sum(node.memkb or 0 for node in nodes)
    if b_info.max_vcpus not in (0, vcpus):
        message = f"vnuma names {vcpus} vCPUs and maxvcpus is {b_info.max_vcpus}"
        s.refuse("vnuma", message, "make them the same")
    elif b_info.max_vcpus == 0 and vcpus > host.cpus:
        message = f"vnuma names {vcpus} vCPUs and the host has {host.cpus} CPUs"
        s.refuse("vnuma", message, f"write maxvcpus={vcpus} if this is meant")
    if b_info.max_memkb not in (None, memkb):
        message = f"the nodes of vnuma have {memkb >> 10} MiB together, which is not maxmem"
        s.refuse("vnuma", message, "make them the same")
    b_info.max_vcpus, b_info.max_memkb, b_info.vnuma_nodes = vcpus, memkb, nodes
    if any(word.lstrip().startswith("pnode") for row in rows for word in row):
        b_info.numa_placement = False


def _warn_about_memory(cfg: DomainConfig, s: Settings) -> None:
    target, maximum = cfg.b_info.target_memkb, cfg.b_info.max_memkb
    if target is None and maximum is None:
        s.report.warn(
            None,
            f"memory is not set: the domain gets xl's default of {DEFAULT_MEMORY_KIB >> 10} MiB, "
            "too little for a current Linux kernel (memory = 256 is enough for most)",
        )
    elif target is not None and maximum is not None and target > maximum:
        s.warn("memory", f"memory ({target >> 10}) is more than maxmem ({maximum >> 10})")


def _affinity(cfg: DomainConfig, s: Settings, name: str, host: Host) -> list[Bitmap]:
    """Return a CPU set for each vCPU: the same for all from a string, one each from a list."""
    if s.raw.get(name) is None:
        return []
    if s.is_list(name):
        specs = (s.strings(name) or [])[: cfg.max_vcpus]
        cfg.b_info.numa_placement = False
    else:
        specs = [s.string(name) or ""]
        if name == "cpus_soft":
            cfg.b_info.numa_placement = False
    maps = [s.guard(name, _cpu_set, s, name, text, host) or [] for text in specs]
    return maps if s.is_list(name) else maps * cfg.max_vcpus


def _cpu_set(s: Settings, name: str, text: str, host: Host) -> Bitmap:
    found = parse_cpus(text, host)
    if found.absent:
        has = f"CPUs 0 to {host.cpus - 1} and {len(host.nodes)} NUMA node(s)"
        s.warn(name, f"{name}: there is no {found.absent}: this host has {has}")
    return found.cpus
