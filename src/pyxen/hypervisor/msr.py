"""The model-specific registers that a PV guest may read and write.

Source: Intel SDM volume 4 for what they are. Which of them Xen 4.17 shows a domain without hardware
of its own, on a processor that calls itself Intel's: guest_rdmsr, guest_wrmsr and the PV fallbacks
behind them, as seen from a guest. Everything else is #GP.
"""

from __future__ import annotations

from pyxen.abi.arch_x86_traps import X86_EXC_GP
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U64

MSR_IA32_TSC = 0x10
MSR_APIC_BASE = 0x1B
MSR_FEATURE_CONTROL = 0x3A
MSR_UCODE_REV = 0x8B
MSR_PLATFORM_INFO = 0xCE
MSR_MISC_FEATURES_ENABLES = 0x140
MSR_MCG_CAP = 0x179
MSR_PERF_STATUS = 0x198
MSR_PERF_CTL = 0x199
MSR_THERM_CONTROL = 0x19A
MSR_THERM_STATUS = 0x19C
MSR_MISC_ENABLE = 0x1A0
MSR_ENERGY_PERF_BIAS = 0x1B0
MSR_PAT = 0x277
MSR_PERF_CAPABILITIES = 0x345
MSR_MC0_CTL = 0x400
MSR_EFER = 0xC000_0080
MSR_FS_BASE = 0xC000_0100
MSR_GS_BASE = 0xC000_0101
MSR_SHADOW_GS_BASE = 0xC000_0102
MSR_TSC_AUX = 0xC000_0103
MSR_AMD64_NB_CFG = 0xC001_001F

EFER_VALUE = 0xD01  # SCE, LME, LMA, NXE
PLATFORM_INFO_CPUID_FAULTING = 1 << 31
_CPUID_FAULTING = 1
_APIC_ENABLED, _APIC_BOOT = 0xFEE0_0800, 1 << 8
_MACHINE_CHECK_BANKS = 2
_XEN_FIRST = 0x4000_0000

_CONSTANT = {
    0x17: 0,  # IA32_PLATFORM_ID
    MSR_FEATURE_CONTROL: 1,  # locked
    MSR_UCODE_REV: 0,
    MSR_PLATFORM_INFO: PLATFORM_INFO_CPUID_FAULTING,
    MSR_PERF_STATUS: 0,
    MSR_PERF_CTL: 0,
    MSR_THERM_STATUS: 0,
    MSR_MISC_ENABLE: 0x80_1801,  # fast strings; no branch trace, no PEBS, no xTPR messages
    MSR_PAT: 0x0000_0501_0007_0406,  # WB WT UC- UC, then write-combining as Xen sets it
    MSR_PERF_CAPABILITIES: 0,
    MSR_EFER: EFER_VALUE,
    MSR_AMD64_NB_CFG: 0,
    0x4000_0000: 0,  # where the hypercall page is asked for
}
# Performance counters: read as zero, writes are dropped.
_COUNTERS = frozenset((*range(0xC1, 0xC9), *range(0x186, 0x18A), *range(0x309, 0x30C),
                       *range(0x38D, 0x391)))  # fmt: skip
# Machine checks: banks that never report anything, writes are dropped.
_MACHINE_CHECK = frozenset((0, 1, *range(0x179, 0x17C), *range(0x280, 0x2A0),
                            *range(0x400, 0x480)))  # fmt: skip
_MACHINE_CHECK_READ_ONLY = frozenset((0, 1))
_DROPPED = frozenset((0xE7, 0xE8, MSR_PERF_CTL, MSR_THERM_CONTROL, MSR_MISC_ENABLE,
                      MSR_ENERGY_PERF_BIAS, MSR_AMD64_NB_CFG))  # fmt: skip
"""IA32_MPERF and IA32_APERF, and others that a guest may write without an effect."""


def read(d: Domain, v: Vcpu, index: int) -> int | None:
    """The value of an MSR, or None where the guest gets #GP.

    A guest that has no handler for #GP yet reads zero, so that it can go on booting.
    """
    value = _read(d, v, index)
    if value is None and not v.pv.traps_address[X86_EXC_GP] and index >> 16 != _XEN_FIRST >> 16:
        return 0
    return value


def _read(d: Domain, v: Vcpu, index: int) -> int | None:
    match index:
        case 0xC000_0100:
            return d.engine.regs.fs_base
        case 0xC000_0101:
            return d.engine.regs.gs_base
        case 0xC000_0102:
            return v.pv.gs_base_user
        case 0xC000_0103:
            return d.engine.tsc_aux
        case 0x10:
            return d.engine.read_tsc()
        case 0x1B:
            return _APIC_ENABLED | (_APIC_BOOT if v.vcpu_id == 0 else 0)
        case 0x140:
            return _CPUID_FAULTING if v.arch.cpuid_faulting else 0
    if index in _MACHINE_CHECK:
        return _machine_check(index)
    return 0 if index in _COUNTERS else _CONSTANT.get(index)


def _machine_check(index: int) -> int:
    if index == MSR_MCG_CAP:
        return 1 << 24 | 1 << 11 | _MACHINE_CHECK_BANKS
    bank, register = divmod(index - MSR_MC0_CTL, 4)
    return U64 if register == 0 and 0 <= bank < _MACHINE_CHECK_BANKS else 0


def write(d: Domain, v: Vcpu, index: int, value: int) -> bool:
    """Write an MSR; False where the guest gets #GP."""
    match index:
        case 0xC000_0100 | 0xC000_0101 | 0xC000_0102:
            return _write_base(d, v, index, value)
        case 0xC000_0103:
            if value >> 32:
                return False
            d.engine.set_tsc_aux(value)
            return True
        case 0x140:
            if value & ~_CPUID_FAULTING:
                return False
            v.arch.cpuid_faulting = bool(value)
            d.engine.set_cpuid_faulting(v.arch.cpuid_faulting)
            return True
        case 0xC000_0080:
            return value == EFER_VALUE
        case 0x8B:
            return value == 0
    if index in _MACHINE_CHECK:
        return index not in _MACHINE_CHECK_READ_ONLY
    return index in _COUNTERS or index in _DROPPED


def _write_base(d: Domain, v: Vcpu, index: int, value: int) -> bool:
    if not is_canonical(value):
        return False
    if index == MSR_FS_BASE:
        d.engine.regs.fs_base = value
    elif index == MSR_GS_BASE:
        d.engine.regs.gs_base = value
    else:
        v.pv.gs_base_user = value
    return True


def is_canonical(address: int) -> bool:
    """Whether bits 47 to 63 are all the same."""
    return address >> 47 in (0, (1 << 17) - 1)
