"""Instructions that Xen does for a PV kernel, and descriptor tables.

Source: xen/arch/x86/pv/emul-priv-op.c, emul-inv-op.c, descriptor-tables.c, misc-hypercalls.c.
"""

from __future__ import annotations

from pyxen.abi.errno import E

from ..case import Case

EINVAL, EFAULT = -E.INVAL.value, -E.FAULT.value


def _does(name: str, source: str, code: str, *expect: int, data: str = "") -> Case:
    return Case(f"privileged/{name}", source, code, expect, data)


_IOPL = "hypercall physdev_op, $PHYSDEVOP_set_iopl, $@iopl\n "
_IOPL_DATA = "@iopl: .long 1"

EMULATED = [
    _does("cli-sti", "emul-priv-op.c: no effect; the event mask is what counts",
          f"{_IOPL}sti\n cli\n movzbl shared_info+VCPU_MASK, %eax\n report %rax", 1,
          data=_IOPL_DATA),
    _does("cli-iopl-0", "without set_iopl the kernel is less privileged than the flag: #GP",
          "expecting @after\n cli\n@after: report trap_vector", 13),
    _does("mov-cr0", "CR0 shows PE, PG, and TS as it is",
          "hypercall fpu_taskswitch, $1\n mov %cr0, %rax\n and $0x80000009, %eax\n report %rax\n"
          " clts\n mov %cr0, %rax\n and $0x80000009, %eax\n report %rax", 0x80000009, 0x80000001),
    _does("mov-to-cr0", "only TS may change",
          "mov %cr0, %rax\n or $8, %rax\n mov %rax, %cr0\n expecting @after\n fld1\n"
          "@after: report trap_vector", 7),
    _does("mov-cr2", "CR2 is vcpu_info's", "mov $0x1234, %eax\n mov %rax, %cr2\n mov %cr2, %rcx\n"
          " report %rcx\n report shared_info+VCPU_CR2", 0x1234, 0x1234),
    _does("mov-cr3", "CR3 is the machine address of the L4",
          "mov %cr3, %rax\n shr $12, %rax\n mfn_of l4, %rcx\n sub %rcx, %rax\n report %rax", 0),
    _does("mov-cr4", "CR4 shows PAE and the bits of FXSR",
          "mov %cr4, %rax\n and $0x620, %eax\n report %rax", 0x620),
    _does("wrmsr-fs", "MSR_FS_BASE", "mov $0xc0000100, %ecx\n mov $0x1234, %eax\n mov $0x55, %edx\n"
          " wrmsr\n xor %eax, %eax\n rdmsr\n report %rax\n report %rdx", 0x1234, 0x55),
    _does("rdmsr-efer", "EFER: SCE, LME, LMA, NXE", "mov $0xc0000080, %ecx\n rdmsr\n report %rax",
          0xD01),
    _does("rdmsr-shadow-gs", "SHADOW_GS_BASE is the user's GS",
          "hypercall set_segment_base, $SEGBASE_GS_USER, $0x4444\n mov $0xc0000102, %ecx\n rdmsr\n"
          " report %rax", 0x4444),
    _does("segment-base-fs", "SEGBASE_FS", "movq $99, pages\n"
          " hypercall set_segment_base, $SEGBASE_FS, $pages\n report %fs:0", 99),
    _does("segment-sel-null", "SEGBASE_GS_USER_SEL with a null selector: base 0",
          "hypercall set_segment_base, $SEGBASE_GS_USER, $0x4444\n"
          " result_of set_segment_base, $SEGBASE_GS_USER_SEL, $0\n mov $0xc0000102, %ecx\n rdmsr\n"
          " report %rax", 0, 0),
    _does("mov-dr", "emul-priv-op.c: DR0 by instruction, as set_debugreg",
          "mov $0x1000, %eax\n mov %rax, %dr0\n mov %dr0, %rcx\n report %rcx\n"
          " result_of get_debugreg, $0", 0x1000, 0x1000),
    _does("mov-dr-xen", "a breakpoint in the hypervisor: #GP",
          "movabs $HYPERVISOR_VIRT_START, %rax\n expecting @after\n mov %rax, %dr0\n"
          "@after: report_trap", 13, 0),
    _does("mov-dr7-gd", "general detect: #GP",
          "mov $0x2400, %eax\n expecting @after\n mov %rax, %dr7\n@after: report_trap", 13, 0),
    _does("debugreg-round", "set_debugreg and get_debugreg",
          "result_of set_debugreg, $3, $0x5000\n result_of get_debugreg, $3", 0, 0x5000),
    _does("dr4-is-dr6", "DR4 is another name of DR6 with CR4.DE clear",
          "result_of set_debugreg, $4, $1\n result_of get_debugreg, $6", 0, 0xFFFF_0FF1),
    _does("cpuid-prefix", "emul-inv-op.c: ud2a; .ascii \"xen\"; cpuid: the leaves of Xen",
          ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n cpuid\n report %rbx\n report %rcx\n report %rdx",
          0x566E6558, 0x65584D4D, 0x4D4D566E, data="# leaf"),
    _does("wbinvd", "done, or ignored without device memory", "wbinvd\n report $1", 1),
    _does("in", "no such port: all ones",
          f"{_IOPL}in $0x61, %al\n movzbl %al, %eax\n report %rax", 0xFF, data=_IOPL_DATA),
    _does("in-iopl-0", "without set_iopl the kernel is less privileged than the ports: #GP",
          "expecting @after\n in $0x61, %al\n@after: report trap_vector", 13),
    _does("hlt", "priv_op_validate: not among what is emulated: #GP",
          "expecting @after\n hlt\n@after: report trap_vector", 13),
    _does("fpu-taskswitch-off", "TS off: no #NM",
          "hypercall fpu_taskswitch, $1\n hypercall fpu_taskswitch, $0\n fld1\n fstp %st(0)\n"
          " report $1", 1),
]  # fmt: skip
EMULATED = [
    Case(c.name, c.source, "mov $0x40000000, %eax\n xor %ecx, %ecx\n" + c.code, c.expect)
    if c.name == "privileged/cpuid-prefix"
    else c
    for c in EMULATED
]

# Descriptors: a 64-bit code segment at level 3, data, and those that nobody may have.
_CODE, _DATA = 0x00AF_FB00_0000_FFFF, 0x00CF_F300_0000_FFFF
_LDT_SYSTEM, _TSS = 0x0000_8200_0000_FFFF, 0x0000_8900_0000_FFFF
_INTERRUPT_GATE, _TASK_GATE = 0x0000_8E00_E030_0000, 0x0000_8500_0000_0000
_CALL_GATE_XEN = 0x0000_EC00_E008_0000
_CALL_GATE = 0x0000_EC00_E033_0000


def _update(name: str, source: str, descriptor: int, result: int) -> Case:
    """update_descriptor in a plain page."""
    return Case(
        f"descriptor/{name}",
        source,
        f"maddr_of $pages, %rbx\n movabs ${descriptor:#x}, %rbp\n"
        " result_of update_descriptor, %rbx, %rbp",
        (result,),
    )


_GDT = """
    movabs  $0x00cff3000000ffff, %rax
    mov     %rax, pages+5*8
    remap   $pages, PAGE_RO
    mfn_of  $pages, %rbx
    mov     %rbx, @list
"""
_GDT_DATA = "@list: .fill 16, 8, 0"

DESCRIPTORS = [
    _update("data", "check_descriptor: data at level 3", _DATA, 0),
    _update("code", "check_descriptor: code at level 3", _CODE, 0),
    _update("absent", "check_descriptor: not present: anything", 0x0000_0900_0000_0000, 0),
    _update("data-level-0", "check_descriptor: level 0 is made level 3", 0x00CF_9300_0000_FFFF, 0),
    _update("ldt", "check_descriptor: a system descriptor is EINVAL", _LDT_SYSTEM, EINVAL),
    _update("tss", "check_descriptor: a TSS is EINVAL", _TSS, EINVAL),
    _update("interrupt-gate", "check_descriptor: EINVAL", _INTERRUPT_GATE, EINVAL),
    _update("task-gate", "check_descriptor: EINVAL", _TASK_GATE, EINVAL),
    _update("call-gate-xen", "check_descriptor: a call gate into Xen's code is EINVAL",
            _CALL_GATE_XEN, EINVAL),
    _update("call-gate", "check_descriptor: a call gate to a guest selector is allowed", _CALL_GATE,
            0),
    Case("descriptor/level-0-is-stored-as-3", "check_descriptor raises the level to the guest's, 3",
         "maddr_of $pages, %rbx\n movabs $0x00cf93000000ffff, %rbp\n"
         " result_of update_descriptor, %rbx, %rbp\n report pages", (0, _DATA)),
    Case("descriptor/gate-is-stored", "check_descriptor: DPL 0, the old one is the target's RPL",
         f"maddr_of $pages, %rbx\n movabs ${_CALL_GATE - 3 * 65536:#x}, %rbp\n"
         " result_of update_descriptor, %rbx, %rbp\n"
         f" movabs ${_CALL_GATE:#x}, %rbp\n"
         " result_of update_descriptor, %rbx, %rbp\n report pages",
         (EINVAL, 0, _CALL_GATE & ~(3 << 45))),
    Case("descriptor/unaligned", "do_update_descriptor: EINVAL",
         "maddr_of $pages+4, %rbx\n result_of update_descriptor, %rbx, $0", (EINVAL,)),
    Case("descriptor/xen-frame", "not the guest's: EINVAL",
         "result_of update_descriptor, $0xd0000, $0", (EINVAL,)),
    Case("descriptor/page-table", "a page table cannot be written so: EINVAL",
         "maddr_of l4, %rbx\n result_of update_descriptor, %rbx, $0", (EINVAL,)),
    Case("descriptor/l1-table", "nor an L1 table that is in use: EINVAL",
         "maddr_of first_l1, %rbx\n result_of update_descriptor, %rbx, $0", (EINVAL,)),
    Case("gdt/set", "do_set_gdt: the segment can be loaded",
         f"{_GDT} result_of set_gdt, $@list, $512\n mov $0x2b, %eax\n mov %eax, %fs\n"
         " mov %fs, %eax\n report %rax", (0, 0x2B), _GDT_DATA),
    Case("gdt/too-many", "do_set_gdt: EINVAL from the reserved entries on",
         "result_of set_gdt, $@list, $7169", (EINVAL,), _GDT_DATA),
    Case("gdt/fault", "do_set_gdt: EFAULT", "result_of set_gdt, $NOT_MAPPED, $512", (EFAULT,)),
    Case("gdt/xen-frame", "pv_set_gdt: EINVAL",
         "movq $0x10, @list\n result_of set_gdt, $@list, $512", (EINVAL,), _GDT_DATA),
    Case("gdt/page-table", "pv_set_gdt: a page table is EINVAL",
         "mfn_of l4, %rbx\n mov %rbx, @list\n result_of set_gdt, $@list, $512", (EINVAL,),
         _GDT_DATA),
    Case("gdt/mapped-writable", "pv_set_gdt: a page that is mapped writable is EINVAL",
         "mfn_of $pages, %rbx\n mov %rbx, @list\n result_of set_gdt, $@list, $512", (EINVAL,),
         _GDT_DATA),
    Case("gdt/bad-descriptor", "validate_segdesc_page: EINVAL",
         f"movabs ${_TSS:#x}, %rax\n mov %rax, pages+64\n {_GDT}"
         " result_of set_gdt, $@list, $512", (EINVAL,), _GDT_DATA),
    Case("gdt/not-writable-after", "get_page_type: a GDT frame cannot be mapped writable: EBUSY",
         f"{_GDT} hypercall set_gdt, $@list, $512\n remap $pages, PAGE_RW\n report %rax",
         (-E.BUSY.value,), _GDT_DATA),
    Case("gdt/update", "update_descriptor of a GDT in use: seen by the next load",
         f"{_GDT} hypercall set_gdt, $@list, $512\n maddr_of $pages+6*8, %rbx\n"
         f" movabs ${_DATA:#x}, %rbp\n result_of update_descriptor, %rbx, %rbp\n"
         " mov $0x33, %eax\n mov %eax, %fs\n mov %fs, %eax\n report %rax", (0, 0x33), _GDT_DATA),
    Case("gdt/levels", "validate_segdesc_page: data of level 0 in a new GDT is level 3 then",
         f"movabs $0x00cf93000000ffff, %rax\n mov %rax, pages+6*8\n {_GDT}"
         " result_of set_gdt, $@list, $512\n report pages+6*8\n"
         " mov $0x33, %eax\n mov %eax, %fs\n mov %fs, %eax\n report %rax",
         (0, _DATA, 0x33), _GDT_DATA),
    Case("gdt/iret-to-level-0", "user mode on a code segment that was of level 0",
         f"movabs $0x00af9b000000ffff, %rax\n mov %rax, pages+6*8\n {_GDT}"
         " hypercall set_gdt, $@list, $512\n expecting @after\n"
         " push_iret $@user, $0x33, $0x202, $user_stack_top, $FLAT_USER_SS64\n iret\n"
         "@after: report trap_vector\n report syscall_rax", (0x100, 0x33), _GDT_DATA,
         user="@user: mov %cs, %eax\n syscall"),
    Case("gdt/iret-to-conforming", "conforming code is allowed, and IRET enters it",
         f"movabs $0x00afff000000ffff, %rax\n mov %rax, pages+6*8\n {_GDT}"
         " result_of set_gdt, $@list, $512\n expecting @after\n"
         " push_iret $@user, $0x33, $0x202, $user_stack_top, $FLAT_USER_SS64\n iret\n"
         "@after: report trap_vector\n report syscall_rax", (0, 0x100, 0x33), _GDT_DATA,
         user="@user: mov %cs, %eax\n syscall"),
    Case("gdt/call-gate", "a far call of user mode through a gate is #GP (not emulated for 64-bit)",
         f"movabs ${_CALL_GATE:#x}, %rax\n mov %rax, pages+6*8\n {_GDT}"
         " result_of set_gdt, $@list, $512\n expecting @after\n to_user @user\n"
         "@after: report_trap\n mov $@call, %rax\n sub trap_rip, %rax\n report %rax",
         (0, 13, 0x30, 0), _GDT_DATA,
         user="@user: mov $4096, %esp\n@call: lcall *@far\n@far: .long 0\n .word 0x33"),
    Case("gdt/call-gate-kernel", "so is one of the kernel",
         f"movabs ${_CALL_GATE:#x}, %rax\n mov %rax, pages+6*8\n {_GDT}"
         " result_of set_gdt, $@list, $512\n expecting @after\n lcall *@far\n"
         "@after: report_trap", (0, 13, 0x30), _GDT_DATA + "\n@far: .long 0\n .word 0x33"),
    Case("gdt/none", "do_set_gdt of no entries takes the table away: #GP for its selectors",
         f"{_GDT} hypercall set_gdt, $@list, $512\n result_of set_gdt, $0, $0\n"
         " mov $0x2b, %eax\n expecting @after\n mov %eax, %fs\n@after: report_trap",
         (0, 13, 0x28), _GDT_DATA),
    Case("gdt/selector-of-xen", "Xen's own data selector has level 0: #GP for the guest",
         "mov $0xe013, %eax\n expecting @after\n mov %eax, %fs\n@after: report_trap",
         (13, 0xE010)),
    Case("ldt/set", "MMUEXT_SET_LDT: the segment can be loaded",
         "movabs $0x00cff3000000ffff, %rax\n mov %rax, pages+8\n remap $pages, PAGE_RO\n"
         " mmuext MMUEXT_SET_LDT, $pages, $512\n report %rax\n mov $0xf, %eax\n mov %eax, %fs\n"
         " mov %fs, %eax\n report %rax", (0, 0xF)),
    Case("ldt/limit", "load_LDT: what is behind the last entry is #GP, though its page is there",
         "movabs $0x00cff3000000ffff, %rax\n mov %rax, pages+8\n mov %rax, pages+16\n"
         " remap $pages, PAGE_RO\n mmuext MMUEXT_SET_LDT, $pages, $2\n report %rax\n"
         " mov $0xf, %eax\n mov %eax, %fs\n expecting @after\n mov $0x17, %eax\n"
         " mov %eax, %fs\n@after: report_trap\n mov %fs, %eax\n report %rax",
         (0, 13, 0x14, 0xF)),
    Case("ldt/limit-of-iret", "so is an iret to it",
         "movabs $0x00affb000000ffff, %rax\n mov %rax, pages+16\n"
         " remap $pages, PAGE_RO\n mmuext MMUEXT_SET_LDT, $pages, $2\n report %rax\n"
         " expecting @after\n"
         " push_iret $user_text, $0x17, $0x202, $user_stack_top, $FLAT_USER_SS64\n iret\n"
         "@after: report_trap", (0, 13, 0x14)),
    Case("ldt/none-at-first", "a vCPU begins without an LDT: #GP",
         "expecting @after\n mov $7, %eax\n mov %eax, %fs\n@after: report_trap", (13, 4)),
    Case("ldt/too-many", "do_mmuext_op: more than 8192 entries are EINVAL",
         "mmuext MMUEXT_SET_LDT, $pages, $8193\n report %rax", (EINVAL,)),
    Case("ldt/unaligned", "do_mmuext_op: EINVAL",
         "mmuext MMUEXT_SET_LDT, $pages+8, $1\n report %rax", (EINVAL,)),
    Case("ldt/in-xen", "do_mmuext_op: __addr_ok: EINVAL",
         "movabs $HYPERVISOR_VIRT_START, %rbx\n mmuext MMUEXT_SET_LDT, %rbx, $1\n report %rax",
         (EINVAL,)),
    Case("ldt/none", "no entries: 0", "mmuext MMUEXT_SET_LDT, $0, $0\n report %rax", (0,)),
]  # fmt: skip

CASES = EMULATED + DESCRIPTORS
