"""HYPERVISOR_xen_version. Source: public/version.h, public/features.h."""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.abi.features import (
    XENFEAT_direct_mapped,
    XENFEAT_gnttab_map_avail_bits,
    XENFEAT_highmem_assist,
    XENFEAT_memory_op_vnode_supported,
    XENFEAT_mmu_pt_update_preserve_ad,
    XENFEAT_pae_pgdir_above_4gb,
)
from pyxen.abi.version import (
    XenCompileInfo,
    XenFeatureInfo,
    XenPlatformParameters,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
)
from pyxen.abi.xen import VMASST_TYPE_pae_extended_cr3
from pyxen.errors import XenError
from pyxen.hypervisor import version
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall.continuation import work
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.memory.pagetable import XEN_VIRT_START
from pyxen.types import PAGE_SIZE, U32

EXTRAVERSION_BYTES = 16
CAPABILITIES_BYTES = 1024
CHANGESET_BYTES = 64
DENIED = b"<denied>"
_WORK_PER_TEXT = 3

FEATURES = (
    1 << XENFEAT_mmu_pt_update_preserve_ad
    | 1 << XENFEAT_highmem_assist
    | 1 << XENFEAT_gnttab_map_avail_bits
    | 1 << XENFEAT_memory_op_vnode_supported
    | 1 << XENFEAT_direct_mapped
)
"""What Xen shows to every PV domain; pae_pgdir_above_4gb only to one that asked for it."""


def xen_version(d: Domain, v: Vcpu, command: int, argument: int) -> int:
    """Dispatch on the command. The build id and the host's command line are not told."""
    command &= U32
    if command == XENVER_version:
        return version.XEN_MAJOR << 16 | version.XEN_MINOR
    if command == XENVER_pagesize:
        if argument:
            raise XenError(E.INVAL, "the page size is the result: there is no argument")
        return PAGE_SIZE
    if command == XENVER_get_features:
        info = XenFeatureInfo.unpack(d.space.read(argument, XenFeatureInfo.SIZE))
        if info.submap_idx != 0:
            raise XenError(E.INVAL, f"feature map {info.submap_idx}")
        info.submap = FEATURES
        if VMASST_TYPE_pae_extended_cr3 in d.vm_assists:
            info.submap |= 1 << XENFEAT_pae_pgdir_above_4gb
        d.space.write(argument, info.pack())
        return 0
    if command == XENVER_build_id:
        raise XenError(E.PERM, "only for domain 0")
    work(d, _WORK_PER_TEXT)
    answer = _text(d, command)
    if answer is None:
        raise XenError(E.NOSYS, f"xen_version {command}")
    d.space.write(argument, answer)
    return 0


def _text(d: Domain, command: int) -> bytes | None:
    match command:
        case _ if command == XENVER_extraversion:
            return version.EXTRAVERSION.encode().ljust(EXTRAVERSION_BYTES, b"\0")
        case _ if command == XENVER_compile_info:
            return XenCompileInfo(compiler=b"pyxen", compile_by=b"pyxen").pack()
        case _ if command == XENVER_capabilities:
            return version.CAPABILITIES.encode().ljust(CAPABILITIES_BYTES, b"\0")
        case _ if command == XENVER_changeset:
            return version.CHANGESET.encode().ljust(CHANGESET_BYTES, b"\0")
        case _ if command == XENVER_platform_parameters:
            return XenPlatformParameters(virt_start=XEN_VIRT_START).pack()
        case _ if command == XENVER_guest_handle:
            return d.spec.uuid.bytes
        case _ if command == XENVER_commandline:
            # Xen writes no more than the word when it refuses.
            return DENIED + b"\0"
    return None
