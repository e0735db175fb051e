"""A vCPU gets the processor after another one: its data segments are loaded anew.

Source: context_switch and load_segments of xen/arch/x86/domain.c. The guest may have changed its
descriptor tables meanwhile: a selector that cannot be loaded any more becomes null, and the guest
is told in its failsafe callback. As in Xen, a vCPU that goes on after sleeping, with no other one
in between, loads nothing.
"""

from __future__ import annotations

from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.selector import DS, ES, FS, GS, data_segment
from pyxen.hypervisor.trap import deliver_failsafe
from pyxen.hypervisor.vcpu import Vcpu

_LAST_NULL_SELECTOR = 3


def switch_to(d: Domain, v: Vcpu) -> None:
    """Make this the vCPU that runs, its data segments loaded.

    Raises: DomainCrash if its stack cannot take the frame of the failsafe callback.
    """
    d.select(v)
    regs = d.engine.regs
    selectors = (regs.selector(DS), regs.selector(ES), regs.selector(FS), regs.selector(GS))
    if max(selectors) > _LAST_NULL_SELECTOR and not _load(d, v, selectors):
        deliver_failsafe(d, v, selectors)


def _load(d: Domain, v: Vcpu, selectors: tuple[int, int, int, int]) -> bool:
    """Load DS, ES, FS and GS; whether all could be. FS and GS keep their bases, which are MSRs."""
    regs = d.engine.regs
    bases = (None, None, regs.fs_base, regs.gs_base)
    all_loaded = True
    for register, selector, base in zip((DS, ES, FS, GS), selectors, bases, strict=True):
        if selector <= _LAST_NULL_SELECTOR:
            continue
        segment = data_segment(d, v, selector)
        if segment is None:
            all_loaded = False
            regs.set_segment(register, 0, base or 0, 0, 0)
        else:
            own_base = segment.base if base is None else base
            regs.set_segment(register, selector, own_base, segment.limit, segment.attributes)
    return all_loaded
