"""Start of day, shared pages, hypercall numbers, page-table operations.

Source: public/xen.h. Names that begin with two underscores (`__HYPERVISOR_iret`) must not be
written inside a class: Python would mangle them there. Reach them from module level.
"""

from typing import Annotated

from pyxen.abi._struct import (
    CPath,
    XenStruct,
    array,
    char,
    ptr,
    s8,
    u8,
    u32,
    u64,
    union,
    xen_struct,
)
from pyxen.abi.arch_x86 import XEN_LEGACY_MAX_VCPUS, ArchSharedInfo, ArchVcpuInfo

_HEADERS = ("xen.h", "arch-x86/xen-mca.h")
_PUBLIC = "xen.h"

# Hypercalls: the number goes into RAX, arguments into RDI, RSI, RDX, R10, R8.
__HYPERVISOR_set_trap_table = 0
__HYPERVISOR_mmu_update = 1
__HYPERVISOR_set_gdt = 2
__HYPERVISOR_stack_switch = 3
__HYPERVISOR_set_callbacks = 4
__HYPERVISOR_fpu_taskswitch = 5
__HYPERVISOR_sched_op_compat = 6
__HYPERVISOR_platform_op = 7
__HYPERVISOR_set_debugreg = 8
__HYPERVISOR_get_debugreg = 9
__HYPERVISOR_update_descriptor = 10
__HYPERVISOR_memory_op = 12
__HYPERVISOR_multicall = 13
__HYPERVISOR_update_va_mapping = 14
__HYPERVISOR_set_timer_op = 15
__HYPERVISOR_event_channel_op_compat = 16
__HYPERVISOR_xen_version = 17
__HYPERVISOR_console_io = 18
__HYPERVISOR_physdev_op_compat = 19
__HYPERVISOR_grant_table_op = 20
__HYPERVISOR_vm_assist = 21
__HYPERVISOR_update_va_mapping_otherdomain = 22
__HYPERVISOR_iret = 23
__HYPERVISOR_vcpu_op = 24
__HYPERVISOR_set_segment_base = 25
__HYPERVISOR_mmuext_op = 26
__HYPERVISOR_xsm_op = 27
__HYPERVISOR_nmi_op = 28
__HYPERVISOR_sched_op = 29
__HYPERVISOR_callback_op = 30
__HYPERVISOR_xenoprof_op = 31
__HYPERVISOR_event_channel_op = 32
__HYPERVISOR_physdev_op = 33
__HYPERVISOR_hvm_op = 34
__HYPERVISOR_sysctl = 35
__HYPERVISOR_domctl = 36
__HYPERVISOR_kexec_op = 37
__HYPERVISOR_tmem_op = 38
__HYPERVISOR_argo_op = 39
__HYPERVISOR_xenpmu_op = 40
__HYPERVISOR_dm_op = 41
__HYPERVISOR_hypfs_op = 42
__HYPERVISOR_arch_0 = 48
__HYPERVISOR_arch_1 = 49
__HYPERVISOR_arch_2 = 50
__HYPERVISOR_arch_3 = 51
__HYPERVISOR_arch_4 = 52
__HYPERVISOR_arch_5 = 53
__HYPERVISOR_arch_6 = 54
__HYPERVISOR_arch_7 = 55
__HYPERVISOR_mca = __HYPERVISOR_arch_0

# Virtual interrupts. TIMER, DEBUG, XENOPROF and XENPMU are per vCPU, the others global.
VIRQ_TIMER = 0
VIRQ_DEBUG = 1
VIRQ_CONSOLE = 2
VIRQ_DOM_EXC = 3
VIRQ_TBUF = 4
VIRQ_DEBUGGER = 6
VIRQ_XENOPROF = 7
VIRQ_CON_RING = 8
VIRQ_PCPU_STATE = 9
VIRQ_MEM_EVENT = 10
VIRQ_ARGO = 11
VIRQ_ENOMEM = 12
VIRQ_XENPMU = 13
VIRQ_ARCH_0 = 16
VIRQ_ARCH_1 = 17
VIRQ_ARCH_2 = 18
VIRQ_ARCH_3 = 19
VIRQ_ARCH_4 = 20
VIRQ_ARCH_5 = 21
VIRQ_ARCH_6 = 22
VIRQ_ARCH_7 = 23
NR_VIRQS = 24

# Low bits of mmu_update.ptr.
MMU_NORMAL_PT_UPDATE = 0
MMU_MACHPHYS_UPDATE = 1
MMU_PT_UPDATE_PRESERVE_AD = 2
MMU_PT_UPDATE_NO_TRANSLATE = 3

# mmuext_op.cmd
MMUEXT_PIN_L1_TABLE = 0
MMUEXT_PIN_L2_TABLE = 1
MMUEXT_PIN_L3_TABLE = 2
MMUEXT_PIN_L4_TABLE = 3
MMUEXT_UNPIN_TABLE = 4
MMUEXT_NEW_BASEPTR = 5
MMUEXT_TLB_FLUSH_LOCAL = 6
MMUEXT_INVLPG_LOCAL = 7
MMUEXT_TLB_FLUSH_MULTI = 8
MMUEXT_INVLPG_MULTI = 9
MMUEXT_TLB_FLUSH_ALL = 10
MMUEXT_INVLPG_ALL = 11
MMUEXT_FLUSH_CACHE = 12
MMUEXT_SET_LDT = 13
MMUEXT_NEW_USER_BASEPTR = 15
MMUEXT_CLEAR_PAGE = 16
MMUEXT_COPY_PAGE = 17
MMUEXT_FLUSH_CACHE_GLOBAL = 18
MMUEXT_MARK_SUPER = 19
MMUEXT_UNMARK_SUPER = 20

# Flags of update_va_mapping; with UVMF_MULTI the other bits are the address of a vCPU bitmap.
UVMF_NONE = 0
UVMF_TLB_FLUSH = 1
UVMF_INVLPG = 2
UVMF_FLUSHTYPE_MASK = 3
UVMF_MULTI = 0 << 2
UVMF_LOCAL = 0 << 2
UVMF_ALL = 1 << 2

CONSOLEIO_write = 0
CONSOLEIO_read = 1

VMASST_CMD_enable = 0
VMASST_CMD_disable = 1
VMASST_TYPE_4gb_segments = 0
VMASST_TYPE_4gb_segments_notify = 1
VMASST_TYPE_writable_pagetables = 2
VMASST_TYPE_pae_extended_cr3 = 3
VMASST_TYPE_architectural_iopl = 4
VMASST_TYPE_runstate_update_flag = 5
VMASST_TYPE_m2p_strict = 32

# Domain numbers from DOMID_FIRST_RESERVED on name no ordinary domain.
DOMID_FIRST_RESERVED = 0x7FF0
DOMID_SELF = 0x7FF0
DOMID_IO = 0x7FF1
DOMID_XEN = 0x7FF2
DOMID_COW = 0x7FF3
DOMID_INVALID = 0x7FF4
DOMID_IDLE = 0x7FFF
DOMID_MASK = 0x7FFF

# vcpu_time_info.flags
XEN_PVCLOCK_TSC_STABLE_BIT = 1 << 0
XEN_PVCLOCK_GUEST_STOPPED = 1 << 1

# start_info.flags
SIF_PRIVILEGED = 1 << 0
SIF_INITDOMAIN = 1 << 1
SIF_MULTIBOOT_MOD = 1 << 2
SIF_MOD_START_PFN = 1 << 3
SIF_VIRT_P2M_4TOOLS = 1 << 4
SIF_PM_MASK = 0xFF << 8
MAX_GUEST_CMDLINE = 1024

# dom0_vga_console_info.video_type
XEN_VGATYPE_TEXT_MODE_3 = 0x03
XEN_VGATYPE_VESA_LFB = 0x23
XEN_VGATYPE_EFI_LFB = 0x70


@xen_struct("mmu_update_t", header=_PUBLIC, size=16)
class MmuUpdate(XenStruct):
    """One page-table write. The low two bits of `ptr`, a machine address, are an MMU_* command."""

    ptr: u64 = 0
    val: u64 = 0


@xen_struct("mmuext_op_t", header=_PUBLIC, size=24)
class MmuextOp(XenStruct):
    """One extended MMU operation.

    arg1: mfn, or linear_addr. arg2: nr_ents (its low 32 bits), vcpumask, or src_mfn.
    """

    cmd: u32 = 0
    arg1: Annotated[u64, CPath("arg1.mfn")] = 0
    arg2: Annotated[u64, CPath("arg2.src_mfn")] = 0


@xen_struct("multicall_entry_t", header=_PUBLIC, size=64)
class MulticallEntry(XenStruct):
    """One hypercall of a batch; `result` is written back."""

    op: u64 = 0
    result: u64 = 0
    args: Annotated[tuple[int, ...], array(u64, 6)] = ()


@xen_struct("vcpu_time_info_t", header=_PUBLIC, size=32)
class VcpuTimeInfo(XenStruct):
    """The PV clock of one vCPU. `version` is odd while the other fields change."""

    version: u32 = 0
    pad0: u32 = 0
    tsc_timestamp: u64 = 0
    system_time: u64 = 0
    tsc_to_system_mul: u32 = 0
    tsc_shift: s8 = 0
    flags: u8 = 0
    pad1: Annotated[tuple[int, ...], array(u8, 2)] = ()


@xen_struct("vcpu_info_t", header=_PUBLIC, size=64)
class VcpuInfo(XenStruct):
    """What Xen and one vCPU share: event flags, CR2, clock."""

    evtchn_upcall_pending: u8 = 0
    evtchn_upcall_mask: u8 = 0
    evtchn_pending_sel: u64 = 0
    arch: ArchVcpuInfo = ArchVcpuInfo()
    time: VcpuTimeInfo = VcpuTimeInfo()


@xen_struct("shared_info_t", header=_PUBLIC, size=3136)
class SharedInfo(XenStruct):
    """The page that Xen and the whole domain share."""

    vcpu_info: Annotated[tuple[VcpuInfo, ...], array(VcpuInfo, XEN_LEGACY_MAX_VCPUS)] = ()
    evtchn_pending: Annotated[tuple[int, ...], array(u64, 64)] = ()
    evtchn_mask: Annotated[tuple[int, ...], array(u64, 64)] = ()
    wc_version: u32 = 0
    wc_sec: u32 = 0
    wc_nsec: u32 = 0
    wc_sec_hi: u32 = 0
    arch: ArchSharedInfo = ArchSharedInfo()


@xen_struct("start_info_t.console.domU", header=_PUBLIC, size=16)
class StartInfoConsoleDomU(XenStruct):
    """Where a DomU finds its console ring."""

    mfn: u64 = 0
    evtchn: u32 = 0


@xen_struct("start_info_t.console.dom0", header=_PUBLIC, size=8)
class StartInfoConsoleDom0(XenStruct):
    """Where Dom0 finds its dom0_vga_console_info, relative to start_info."""

    info_off: u32 = 0
    info_size: u32 = 0


@xen_struct("start_info_t", header=_PUBLIC, size=1168)
class StartInfo(XenStruct):
    """What a PV kernel finds at RSI. Up to `console` it is filled again at resume.

    console: StartInfoConsoleDomU or StartInfoConsoleDom0. mod_start: a virtual address, or a PFN
    with SIF_MOD_START_PFN.
    """

    magic: Annotated[bytes, char(32)] = b""
    nr_pages: u64 = 0
    shared_info: u64 = 0
    flags: u32 = 0
    store_mfn: u64 = 0
    store_evtchn: u32 = 0
    console: Annotated[bytes, union(StartInfoConsoleDomU, StartInfoConsoleDom0)] = b""
    pt_base: u64 = 0
    nr_pt_frames: u64 = 0
    mfn_list: u64 = 0
    mod_start: u64 = 0
    mod_len: u64 = 0
    cmd_line: Annotated[bytes, char(MAX_GUEST_CMDLINE)] = b""
    first_p2m_pfn: u64 = 0
    nr_p2m_frames: u64 = 0


@xen_struct("struct xen_multiboot_mod_list", header=_PUBLIC, size=16)
class XenMultibootModList(XenStruct):
    """One module, with SIF_MULTIBOOT_MOD; the list ends at mod_start 0."""

    mod_start: u32 = 0
    mod_end: u32 = 0
    cmdline: u32 = 0
    pad: u32 = 0


@xen_struct("xen_uuid_t", header=_PUBLIC, size=16)
class XenUuid(XenStruct):
    """A UUID, big-endian throughout."""

    a: Annotated[bytes, char(16)] = b""


@xen_struct("xenctl_bitmap_t", header=_PUBLIC, size=16)
class XenctlBitmap(XenStruct):
    """A bitmap in guest memory."""

    bitmap: ptr = 0
    nr_bits: u32 = 0
