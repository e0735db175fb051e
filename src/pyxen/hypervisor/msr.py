"""The model-specific registers that a PV guest may read and write.

Source: the PV paths of xen/arch/x86/pv/emul-priv-op.c as seen from a guest; Intel SDM volume 4.
Reads that Linux does at boot get the value of a plain processor; writes to those are dropped.
"""

from __future__ import annotations

from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu

MSR_IA32_TSC = 0x10
MSR_APIC_BASE = 0x1B
MSR_PLATFORM_INFO = 0xCE
MSR_MTRRcap = 0xFE
MSR_ARCH_CAPABILITIES = 0x10A
MSR_MISC_FEATURES_ENABLES = 0x140
MSR_MISC_ENABLE = 0x1A0
MSR_PAT = 0x277
MSR_EFER = 0xC000_0080
MSR_FS_BASE = 0xC000_0100
MSR_GS_BASE = 0xC000_0101
MSR_SHADOW_GS_BASE = 0xC000_0102
MSR_TSC_AUX = 0xC000_0103

EFER_VALUE = 0xD01  # SCE, LME, LMA, NXE
_CONSTANT = {
    MSR_EFER: EFER_VALUE,
    MSR_APIC_BASE: 0xFEE0_0900,
    MSR_PAT: 0x0000_0501_0007_0406,  # WB WT UC- UC, then write-combining as Xen sets it
    MSR_MISC_ENABLE: 1,
    MSR_TSC_AUX: 0,
    0x17: 0,
    0x8B: 0,
    MSR_PLATFORM_INFO: 0,
    MSR_MTRRcap: 0,
    MSR_ARCH_CAPABILITIES: 0,
    0x48: 0,
    0x122: 0,
    MSR_MISC_FEATURES_ENABLES: 0,
    0xC001_0010: 0,
    0xC001_0015: 0,
    0xC001_1029: 0,
}


def read(d: Domain, v: Vcpu, index: int) -> int | None:
    """The value of an MSR, or None where hardware would fault."""
    match index:
        case 0xC000_0100:
            return d.engine.regs.fs_base
        case 0xC000_0101:
            return d.engine.regs.gs_base
        case 0xC000_0102:
            return v.pv.gs_base_user
        case 0x10:
            return d.engine.read_tsc()
    return _CONSTANT.get(index)


def write(d: Domain, v: Vcpu, index: int, value: int) -> bool:
    """Write an MSR; False where hardware would fault."""
    if index in (MSR_FS_BASE, MSR_GS_BASE, MSR_SHADOW_GS_BASE):
        if not is_canonical(value):
            return False
        if index == MSR_FS_BASE:
            d.engine.regs.fs_base = value
        elif index == MSR_GS_BASE:
            d.engine.regs.gs_base = value
        else:
            v.pv.gs_base_user = value
        return True
    return index in _CONSTANT


def is_canonical(address: int) -> bool:
    """Whether bits 47 to 63 are all the same."""
    return address >> 47 in (0, (1 << 17) - 1)
