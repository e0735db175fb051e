"""Performance counters: the arguments of HYPERVISOR_xenpmu_op.

Source: public/pmu.h and public/arch-x86/pmu.h.
"""

from typing import Annotated

from pyxen.abi._struct import CPath, XenStruct, array, char, u8, u16, u32, u64, union, xen_struct

_HEADERS = (
    "arch-x86/pmu.h",
    "pmu.h",
)

# xen_pmu_arch.pmu_flags
PMU_CACHED = 1 << 0
PMU_SAMPLE_USER = 1 << 1
PMU_SAMPLE_REAL = 1 << 2
PMU_SAMPLE_PV = 1 << 3

# Sizes of the unions in xen_pmu_arch.
XENPMU_REGS_PAD_SZ = 64
XENPMU_CTXT_PAD_SZ = 128


# Version of this interface.
XENPMU_VER_MAJ = 0
XENPMU_VER_MIN = 1

# Commands of HYPERVISOR_xenpmu_op.
XENPMU_mode_get = 0
XENPMU_mode_set = 1
XENPMU_feature_get = 2
XENPMU_feature_set = 3
XENPMU_init = 4
XENPMU_finish = 5
XENPMU_lvtpc_set = 6
XENPMU_flush = 7

# Modes.
XENPMU_MODE_OFF = 0
XENPMU_MODE_SELF = 1 << 0
XENPMU_MODE_HV = 1 << 1
XENPMU_MODE_ALL = 1 << 2

# Features.
XENPMU_FEATURE_INTEL_BTS = 1 << 0
XENPMU_FEATURE_IPC_ONLY = 1 << 1
XENPMU_FEATURE_ARCH_ONLY = 1 << 2


@xen_struct("xen_pmu_amd_ctxt_t", header="arch-x86/pmu.h", size=8)
class XenPmuAmdCtxt(XenStruct):
    """Counters of an AMD processor: offsets of their arrays."""

    counters: u32 = 0
    ctrls: u32 = 0


@xen_struct("xen_pmu_cntr_pair_t", header="arch-x86/pmu.h", size=16)
class XenPmuCntrPair(XenStruct):
    """A counter and its control register."""

    counter: u64 = 0
    control: u64 = 0


@xen_struct("xen_pmu_intel_ctxt_t", header="arch-x86/pmu.h", size=64)
class XenPmuIntelCtxt(XenStruct):
    """Counters of an Intel processor."""

    fixed_counters: u32 = 0
    arch_counters: u32 = 0
    global_ctrl: u64 = 0
    global_ovf_ctrl: u64 = 0
    global_status: u64 = 0
    fixed_ctrl: u64 = 0
    ds_area: u64 = 0
    pebs_enable: u64 = 0
    debugctl: u64 = 0


@xen_struct("xen_pmu_regs_t", header="arch-x86/pmu.h", size=32)
class XenPmuRegs(XenStruct):
    """Registers at a sample."""

    ip: u64 = 0
    sp: u64 = 0
    flags: u64 = 0
    cs: u16 = 0
    ss: u16 = 0
    cpl: u8 = 0
    pad: Annotated[tuple[int, ...], array(u8, 3)] = ()


@xen_struct("xen_pmu_arch_t", header="arch-x86/pmu.h", size=208)
class XenPmuArch(XenStruct):
    """The x86 part of xen_pmu_data. r: XenPmuRegs; lapic: LVTPC; c: a context."""

    r: Annotated[bytes, union(XenPmuRegs, char(64))] = b""
    pmu_flags: u64 = 0
    lapic: Annotated[bytes, union(u32, u64), CPath("l")] = b""
    c: Annotated[bytes, union(XenPmuAmdCtxt, XenPmuIntelCtxt, char(128))] = b""


@xen_struct("xen_pmu_params_t.version", header="pmu.h", size=8)
class XenPmuParamsVersion(XenStruct):
    """Version that the caller knows; out: the one in use."""

    maj: u32 = 0
    min: u32 = 0


@xen_struct("xen_pmu_params_t", header="pmu.h", size=24)
class XenPmuParams(XenStruct):
    """Argument of every command."""

    version: XenPmuParamsVersion = XenPmuParamsVersion()
    val: u64 = 0
    vcpu: u32 = 0
    pad: u32 = 0


@xen_struct("struct xen_pmu_data", header="pmu.h", size=224)
class XenPmuData(XenStruct):
    """The page that Xen and a vCPU share."""

    vcpu_id: u32 = 0
    pcpu_id: u32 = 0
    domain_id: u16 = 0
    pad: Annotated[bytes, char(6)] = b""
    pmu: XenPmuArch = XenPmuArch()
