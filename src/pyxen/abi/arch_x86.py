"""The x86-64 part of the PV ABI: registers, selectors, the virtual address layout, vCPU contexts.

Source: public/arch-x86/xen.h and public/arch-x86/xen-x86_64.h.
"""

from typing import Annotated

from pyxen.abi._struct import (
    XenStruct,
    array,
    char,
    u8,
    u16,
    u32,
    u64,
    xen_struct,
)

_HEADERS = ("xen.h",)
_PUBLIC = "xen.h"

# The GDT: the top entries of the last pages are Xen's.
FIRST_RESERVED_GDT_PAGE = 14
FIRST_RESERVED_GDT_BYTE = FIRST_RESERVED_GDT_PAGE * 4096
FIRST_RESERVED_GDT_ENTRY = FIRST_RESERVED_GDT_BYTE // 8

# Selectors that Xen's entries offer to every PV guest.
FLAT_RING3_CS32 = 0xE023
FLAT_RING3_CS64 = 0xE033
FLAT_RING3_DS32 = 0xE02B
FLAT_RING3_DS64 = 0x0000
FLAT_RING3_SS32 = 0xE02B
FLAT_RING3_SS64 = 0xE02B
FLAT_KERNEL_DS64 = FLAT_RING3_DS64
FLAT_KERNEL_DS32 = FLAT_RING3_DS32
FLAT_KERNEL_DS = FLAT_KERNEL_DS64
FLAT_KERNEL_CS64 = FLAT_RING3_CS64
FLAT_KERNEL_CS32 = FLAT_RING3_CS32
FLAT_KERNEL_CS = FLAT_KERNEL_CS64
FLAT_KERNEL_SS64 = FLAT_RING3_SS64
FLAT_KERNEL_SS32 = FLAT_RING3_SS32
FLAT_KERNEL_SS = FLAT_KERNEL_SS64
FLAT_USER_DS64 = FLAT_RING3_DS64
FLAT_USER_DS32 = FLAT_RING3_DS32
FLAT_USER_DS = FLAT_USER_DS64
FLAT_USER_CS64 = FLAT_RING3_CS64
FLAT_USER_CS32 = FLAT_RING3_CS32
FLAT_USER_CS = FLAT_USER_CS64
FLAT_USER_SS64 = FLAT_RING3_SS64
FLAT_USER_SS32 = FLAT_RING3_SS32
FLAT_USER_SS = FLAT_USER_SS64

# Virtual addresses that no guest may map.
HYPERVISOR_VIRT_START = 0xFFFF800000000000
HYPERVISOR_VIRT_END = 0xFFFF880000000000
MACH2PHYS_VIRT_START = 0xFFFF800000000000
MACH2PHYS_VIRT_END = 0xFFFF804000000000
MACH2PHYS_NR_ENTRIES = (MACH2PHYS_VIRT_END - MACH2PHYS_VIRT_START) >> 3

# `which` of set_segment_base.
SEGBASE_FS = 0
SEGBASE_GS_USER = 1
SEGBASE_GS_KERNEL = 2
SEGBASE_GS_USER_SEL = 3

# `flags` of vcpu_guest_context, and of iret_context (VGCF_in_syscall).
VGCF_I387_VALID = 1 << 0
VGCF_IN_KERNEL = 1 << 2
VGCF_i387_valid = 1 << 0
VGCF_in_kernel = 1 << 2
VGCF_failsafe_disables_events = 1 << 3
VGCF_syscall_disables_events = 1 << 4
VGCF_online = 1 << 5
VGCF_in_syscall = 1 << 8
VGCF_IN_SYSCALL = VGCF_in_syscall

XEN_LEGACY_MAX_VCPUS = 32
XEN_CPUID_NO_SUBLEAF = 0xFFFFFFFF
XEN_HVM_DEBUGCONS_IOPORT = 0xE9

# `emulation_flags` and `misc_flags` of xen_arch_domainconfig.
XEN_X86_EMU_LAPIC = 1 << 0
XEN_X86_EMU_HPET = 1 << 1
XEN_X86_EMU_PM = 1 << 2
XEN_X86_EMU_RTC = 1 << 3
XEN_X86_EMU_IOAPIC = 1 << 4
XEN_X86_EMU_PIC = 1 << 5
XEN_X86_EMU_VGA = 1 << 6
XEN_X86_EMU_IOMMU = 1 << 7
XEN_X86_EMU_PIT = 1 << 8
XEN_X86_EMU_USE_PIRQ = 1 << 9
XEN_X86_EMU_VPCI = 1 << 10
XEN_X86_EMU_ALL = 0x7FF
XEN_X86_MSR_RELAXED = 1 << 0

# Parts of the C header that are macros with arguments, or text for an assembler.
XEN_EMULATE_PREFIX_BYTES = b"\x0f\x0bxen"
"""`ud2; .ascii "xen"`: the instruction behind it is emulated."""
TI_DPL_MASK = 3
"""Bits of trap_info.flags: who may enter by a software interrupt."""
TI_IF = 4
"""Bit of trap_info.flags: events are masked on entry."""

_NOT_IN_HEADER = {
    "TI_DPL_MASK": "the header has TI_GET_DPL(), a macro with an argument",
    "TI_IF": "the header has TI_GET_IF(), a macro with an argument",
}


@xen_struct("trap_info_t", header=_PUBLIC, size=16)
class TrapInfo(XenStruct):
    """One entry of the virtual IDT; a table ends at an entry whose address is 0."""

    vector: u8 = 0
    flags: u8 = 0
    cs: u16 = 0
    address: u64 = 0


@xen_struct("struct iret_context", header=_PUBLIC, size=72)
class IretContext(XenStruct):
    """What HYPERVISOR_iret finds at the guest kernel's stack pointer."""

    rax: u64 = 0
    r11: u64 = 0
    rcx: u64 = 0
    flags: u64 = 0
    rip: u64 = 0
    cs: u64 = 0
    rflags: u64 = 0
    rsp: u64 = 0
    ss: u64 = 0


@xen_struct("cpu_user_regs_t", header=_PUBLIC, size=200)
class CpuUserRegs(XenStruct):
    """The general and segment registers of a vCPU."""

    r15: u64 = 0
    r14: u64 = 0
    r13: u64 = 0
    r12: u64 = 0
    rbp: u64 = 0
    rbx: u64 = 0
    r11: u64 = 0
    r10: u64 = 0
    r9: u64 = 0
    r8: u64 = 0
    rax: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    rsi: u64 = 0
    rdi: u64 = 0
    error_code: u32 = 0
    entry_vector: u32 = 0
    rip: u64 = 0
    cs: u16 = 0
    _pad0: Annotated[tuple[int, ...], array(u16, 1)] = ()
    saved_upcall_mask: u8 = 0
    _pad1: Annotated[tuple[int, ...], array(u8, 3)] = ()
    rflags: u64 = 0
    rsp: u64 = 0
    ss: u16 = 0
    _pad2: Annotated[tuple[int, ...], array(u16, 3)] = ()
    es: u16 = 0
    _pad3: Annotated[tuple[int, ...], array(u16, 3)] = ()
    ds: u16 = 0
    _pad4: Annotated[tuple[int, ...], array(u16, 3)] = ()
    fs: u16 = 0
    _pad5: Annotated[tuple[int, ...], array(u16, 3)] = ()
    gs: u16 = 0
    _pad6: Annotated[tuple[int, ...], array(u16, 3)] = ()


@xen_struct("vcpu_guest_context_t", header=_PUBLIC, size=5168)
class VcpuGuestContext(XenStruct):
    """The whole start state of a PV vCPU (VCPUOP_initialise). ctrlreg[1] is the user's CR3."""

    fpu_ctxt: Annotated[bytes, char(512)] = b""
    flags: u64 = 0
    user_regs: CpuUserRegs = CpuUserRegs()
    trap_ctxt: Annotated[tuple[TrapInfo, ...], array(TrapInfo, 256)] = ()
    ldt_base: u64 = 0
    ldt_ents: u64 = 0
    gdt_frames: Annotated[tuple[int, ...], array(u64, 16)] = ()
    gdt_ents: u64 = 0
    kernel_ss: u64 = 0
    kernel_sp: u64 = 0
    ctrlreg: Annotated[tuple[int, ...], array(u64, 8)] = ()
    debugreg: Annotated[tuple[int, ...], array(u64, 8)] = ()
    event_callback_eip: u64 = 0
    failsafe_callback_eip: u64 = 0
    syscall_callback_eip: u64 = 0
    vm_assist: u64 = 0
    fs_base: u64 = 0
    gs_base_kernel: u64 = 0
    gs_base_user: u64 = 0


@xen_struct("arch_vcpu_info_t", header=_PUBLIC, size=16)
class ArchVcpuInfo(XenStruct):
    """The x86 part of vcpu_info."""

    cr2: u64 = 0
    pad: u64 = 0


@xen_struct("arch_shared_info_t", header=_PUBLIC, size=48)
class ArchSharedInfo(XenStruct):
    """The x86 part of shared_info: where the guest keeps its P2M."""

    max_pfn: u64 = 0
    pfn_to_mfn_frame_list_list: u64 = 0
    nmi_reason: u64 = 0
    p2m_cr3: u64 = 0
    p2m_vaddr: u64 = 0
    p2m_generation: u64 = 0


@xen_struct("struct xen_arch_domainconfig", header=_PUBLIC, size=8)
class XenArchDomainconfig(XenStruct):
    """The x86 part of XEN_DOMCTL_createdomain."""

    emulation_flags: u32 = 0
    misc_flags: u32 = 0


@xen_struct("xen_cpuid_leaf_t", header=_PUBLIC, size=24)
class XenCpuidLeaf(XenStruct):
    """One CPUID leaf as the migration stream carries it."""

    leaf: u32 = 0
    subleaf: u32 = 0
    a: u32 = 0
    b: u32 = 0
    c: u32 = 0
    d: u32 = 0


@xen_struct("xen_msr_entry_t", header=_PUBLIC, size=16)
class XenMsrEntry(XenStruct):
    """One MSR as the migration stream carries it."""

    idx: u32 = 0
    flags: u32 = 0
    val: u64 = 0
