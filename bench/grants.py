"""What it costs a back end to use the guest's pages for one request: GrantTable, no engine runs.

python -m bench.grants prints it for both paths and both versions of the grant table.
"""

from __future__ import annotations

import time
from uuid import UUID

from pyxen.cpu.base import CpuidLeaf
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.hypervisor.clock import HostClock
from pyxen.hypervisor.domain import Domain, DomainSpec
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.time import SystemTime
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES, MachineMemory
from pyxen.types import DomId, GrantRef

PAGES = 512
PAGES_OF_A_REQUEST = 32
FIRST_GREF = 16
ROUNDS = 50


def _no_cpuid(leaf: int, subleaf: int) -> CpuidLeaf:
    return CpuidLeaf()


def _cpu_seconds(d: Domain, grefs: list[int], requests: int, *, write: bool) -> float:
    table = d.grants
    begin = time.process_time()
    for _ in range(requests):
        table.begin_many(grefs, write=write)
        table.end_many(grefs, write=write)
    return time.process_time() - begin


def grant_us(*, native: bool, version: int = 1, write: bool = True, requests: int = 1000) -> float:
    """Microseconds of CPU time to begin and to end the use of one page of a request.

    requests: how many in each of ROUNDS rounds, of which the fastest counts.
    """
    memory = MachineMemory(PAGES)
    layout.install(memory)
    engine = UnicornEngine(memory, _no_cpuid, native=native)
    spec = DomainSpec(DomId(1), UUID(int=1), "bench", PAGES, PAGES, 1)
    domain = Domain(spec, memory, engine, SystemTime(HostClock(engine.read_tsc)))
    try:
        if version == 2:
            continuation.begin(domain)
            domain.grants.set_version(2)
        grefs = list(range(FIRST_GREF, FIRST_GREF + PAGES_OF_A_REQUEST))
        for n, gref in enumerate(grefs):
            domain.grants.seed(GrantRef(gref), 0, XEN_PAGES + 100 + n)
        best = min(_cpu_seconds(domain, grefs, requests, write=write) for _ in range(ROUNDS))
        return best / requests / PAGES_OF_A_REQUEST * 1e6
    finally:
        engine.close()


def main() -> None:
    """Print all of it."""
    for native in (True, False):
        for version in (1, 2):
            for write in (False, True):
                took = grant_us(
                    native=native, version=version, write=write, requests=1000 if native else 20
                )
                path, kind = "native" if native else "Python", "write" if write else "read"
                print(f"{path:6} version {version} {kind:5} {took:.3f} us a page, begin and end")


if __name__ == "__main__":
    main()
