"""GNTTABOP_map_grant_ref, unmap_grant_ref, unmap_and_replace: a domain maps what was granted to it.

Source: public/grant_table.h. The only table that a guest finds something in is its own: it may map
what it granted to itself.
"""

from __future__ import annotations

from pyxen.abi.grant_table import (
    GNTMAP_device_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GNTST_bad_dev_addr,
    GNTST_bad_domain,
    GNTST_bad_gntref,
    GNTST_bad_handle,
    GNTST_no_space,
    GnttabMapGrantRef,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from pyxen.hypervisor import grant_mapping
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.grant import DOMAIN_0, GrantRefused, refuse_of_domain_0
from pyxen.hypervisor.grant_active import Use, use_of
from pyxen.hypervisor.grant_maptrack import Mapping
from pyxen.hypervisor.page_types import Restart
from pyxen.types import PAGE_SHIFT, GrantRef


def map_grant_ref(d: Domain, op: GnttabMapGrantRef) -> None:
    """Map a grant for the CPU, for devices, or both. Out: handle, dev_bus_addr.

    Without an IOMMU a mapping for devices is only a use that is counted.
    Raises: GrantRefused, with nothing mapped.
    """
    use = _use(op.flags)
    if not use.ways:
        raise GrantRefused(GNTST_bad_gntref, f"a mapping for nobody, flags {op.flags:#x}")
    if op.dom not in (d.domid, DOMAIN_0):
        raise GrantRefused(GNTST_bad_domain, f"there is no domain {op.dom}")
    handle = d.grants.maptrack.take()
    if handle is None:
        raise GrantRefused(GNTST_no_space, "all handles are in use")
    try:
        if op.dom == DOMAIN_0:
            refuse_of_domain_0(op.ref)
        mfn = _acquire_and_map(d, op, use)
    except (GrantRefused, Restart):
        d.grants.maptrack.put(handle)
        raise
    d.grants.maptrack.record(handle, Mapping(d.domid, GrantRef(op.ref), op.flags))
    op.handle, op.dev_bus_addr = handle, mfn << PAGE_SHIFT


def _acquire_and_map(d: Domain, op: GnttabMapGrantRef, use: Use) -> int:
    mfn = d.grants.acquire_to_map(op.ref, d.domid, use)
    try:
        if op.flags & GNTMAP_host_map:
            grant_mapping.create(d, op.host_addr, mfn, op.flags)
    except (GrantRefused, Restart):
        d.grants.release(op.ref, use)
        raise
    return mfn


def unmap_grant_ref(d: Domain, op: GnttabUnmapGrantRef) -> None:
    """Undo a mapping, or the half of it that is named. Raises: GrantRefused."""
    _unmap(d, op.handle, op.host_addr, op.dev_bus_addr)


def unmap_and_replace(d: Domain, op: GnttabUnmapAndReplace) -> None:
    """Undo a mapping and move the page at `new_addr` into its place. Raises: GrantRefused."""
    _unmap(d, op.handle, op.host_addr, 0, op.new_addr)


def _unmap(d: Domain, handle: int, host_addr: int, dev_bus_addr: int, new_addr: int = 0) -> None:
    grants = d.grants
    mapping = grants.maptrack.find(handle)
    if mapping is None:
        raise GrantRefused(GNTST_bad_handle, f"there is no handle {handle}")
    flags, ref = mapping.flags, mapping.ref
    mfn = grants.active_frame(ref)
    device = bool(dev_bus_addr and flags & GNTMAP_device_map)
    if device and dev_bus_addr != mfn << PAGE_SHIFT:
        raise GrantRefused(GNTST_bad_dev_addr, f"the bus address is not {dev_bus_addr:#x}")
    done = GNTMAP_device_map if device else 0
    if host_addr and flags & GNTMAP_host_map:
        if new_addr:
            grant_mapping.replace(d, host_addr, new_addr, mfn, flags)
        else:
            grant_mapping.destroy(d, host_addr, mfn, flags)
        done |= GNTMAP_host_map
    # COMMIT
    grants.release(ref, _use(done | flags & GNTMAP_readonly))
    mapping.flags &= ~done
    if not mapping.flags & (GNTMAP_device_map | GNTMAP_host_map):
        grants.maptrack.put(handle)


def _use(flags: int) -> Use:
    """How the GNTMAP_* flags use a grant."""
    return use_of(
        host=bool(flags & GNTMAP_host_map),
        device=bool(flags & GNTMAP_device_map),
        writes=not flags & GNTMAP_readonly,
    )
