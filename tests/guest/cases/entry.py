"""Entries into the kernel: the frame of each kind of trap, interrupts by instruction, stacks.

Source: xen/arch/x86/pv/traps.c (pv_inject_event), xen/arch/x86/x86_64/entry.S
(create_bounce_frame), public/arch-x86/xen.h.
"""

from __future__ import annotations

from ..case import NONE, Case

_IF = 1 << 9
_KERNEL_CS, _USER_CS, _USER_SS = 0xE030, 0xE033, 0xE02B


def _trap(name: str, source: str, code: str, vector: int, error: int, before: str = "") -> Case:
    """A fault of the kernel: vector, error code, RIP at the instruction, kernel CS, stack."""
    code = f"""
    {before}
    expecting @after
    mov     %rsp, %rbp
@here: {code}
@after: report_trap
    mov     trap_rip, %rax
    sub     $@here, %rax
    report  %rax
    movzwl  trap_cs, %eax
    report  %rax
    mov     trap_sp, %rax
    sub     %rbp, %rax
    report  %rax
    report  trap_count"""
    return Case(f"trap/{name}", source, code, (vector, error, 0, _KERNEL_CS, 0, 1))


FAULTS = [
    _trap("divide-error", "#DE has no error code", "div %ecx", 0, NONE, "xor %ecx, %ecx"),
    _trap("invalid-opcode", "#UD has no error code", "ud2", 6, NONE),
    _trap(
        "no-device",
        "fpu_taskswitch(1) sets TS: #NM, which Xen clears before the handler runs",
        "fld1",
        7,
        NONE,
        "hypercall fpu_taskswitch, $1",
    ),
    _trap("protection", "#GP(0): a non-canonical address", "mov (%rdx), %rax", 13, 0,
          "movabs $NON_CANONICAL, %rdx"),
    _trap("bad-selector", "#GP(selector): beyond the GDT's limit", "mov %edx, %fs", 13, 0xFFF0,
          "mov $0xfff3, %edx"),
    _trap(
        "null-ss",
        "#GP(0): a PV kernel runs at level 3, where SS may not be null",
        "mov %edx, %ss",
        13,
        0,
        "xor %edx, %edx",
    ),
    _trap("null-cs", "#GP(0): far return to a null selector", "lretq", 13, 0,
          "push $0\n push $@here"),
    _trap("page-fault-read", "#PF(0): nothing there", "mov NOT_MAPPED, %eax", 14, 0),
    _trap("page-fault-write", "#PF(2)", "movl $1, NOT_MAPPED", 14, 2),
    _trap("page-fault-read-only", "#PF(3): a read-only page of the kernel",
          "movl $1, pages", 14, 3, "remap $pages, PAGE_RO"),
    _trap("swapgs", "privileged, not emulated: #GP(0)", "swapgs", 13, 0),
    _trap("sysret", "privileged, not emulated: #GP(0)", "sysretq", 13, 0),
    _trap("lgdt", "xen/arch/x86/pv/emul-priv-op.c does not do it: #GP(0)", "lgdt pages", 13, 0),
    _trap("lidt", "not emulated: #GP(0)", "lidt pages", 13, 0),
    _trap("lldt", "not emulated: #GP(0)", "lldt %ax", 13, 0, "xor %eax, %eax"),
    _trap("ltr", "not emulated: #GP(0)", "ltr %ax", 13, 0, "xor %eax, %eax"),
    _trap("hlt-like-mwait", "an MSR nobody has: #GP(0)", "rdmsr", 13, 0, "mov $0xdead, %ecx"),
    _trap("wrmsr-unknown", "writing an MSR nobody has: #GP(0)", "wrmsr", 13, 0,
          "mov $0xdead, %ecx"),
    _trap("wrmsr-fs-base", "non-canonical FS base: #GP(0)", "wrmsr", 13, 0,
          "mov $0xc0000100, %ecx\n xor %eax, %eax\n mov $0x8000, %edx"),
    _trap("mov-cr8", "pv/emul-priv-op.c write_cr knows 0, 2, 3, 4: #UD... #GP(0)",
          "mov %rax, %cr8", 13, 0),
]  # fmt: skip


def _gate(name: str, source: str, code: str, expect: tuple[int, ...], user: bool) -> Case:
    lines = f"@here: {code}\n@end: ud2"
    if user:
        body = f"expecting @after\n to_user @here\n@after: {_REPORT_GATE}"
        return Case(f"trap/{name}", source, body, expect, user=lines)
    return Case(
        f"trap/{name}", source, f"expecting @after\n{lines}\n@after: {_REPORT_GATE}", expect
    )


_REPORT_GATE = """
    report_trap
    mov     trap_rip, %rax
    sub     $@here, %rax
    report  %rax"""

GATES = [
    _gate("int3-kernel", "gate 3 has DPL 3; RIP is behind it", "int3", (3, NONE, 1), False),
    _gate("int3-user", "gate 3 has DPL 3; RIP is behind it", "int3", (3, NONE, 1), True),
    _gate("int80-user", "gate 0x80 has DPL 3", "int $0x80", (0x80, NONE, 2), True),
    _gate("int80-kernel", "gate 0x80 has DPL 3", "int $0x80", (0x80, NONE, 2), False),
    _gate("int-user-gate", "gate 0x20 has DPL 0: #GP(vector * 8 + 2) at the instruction",
          "int $0x20", (13, 0x20 * 8 + 2, 0), True),
    _gate("int14-user", "a user cannot fake a page fault", "int $14", (13, 14 * 8 + 2, 0), True),
    _gate("int82-user", "0x82 was Xen's own gate for 32-bit hypercalls: #GP for a 64-bit user",
          "int $0x82", (13, 0x82 * 8 + 2, 0), True),
    _gate("user-hlt", "privileged in user mode: #GP(0)", "hlt", (13, 0, 0), True),
    _gate("user-cli", "privileged in user mode: #GP(0)", "cli", (13, 0, 0), True),
    _gate("user-in", "ports are not the user's: #GP(0)", "inb $0x60, %al", (13, 0, 0), True),
    _gate("user-rdmsr", "privileged in user mode: #GP(0)", "rdmsr", (13, 0, 0), True),
    _gate("user-mov-cr3", "privileged in user mode: #GP(0)", "mov %cr3, %rax", (13, 0, 0), True),
    _gate("user-mov-dr", "privileged in user mode: #GP(0)", "mov %rax, %dr7", (13, 0, 0), True),
    _gate("user-ud2", "#UD of user mode", "ud2", (6, NONE, 0), True),
    _gate("user-page-fault", "#PF of user mode has bit 2", "mov 0x1000, %eax", (14, 4, 0), True),
    _gate("user-writes", "#PF(6)", "mov %eax, 0x1000", (14, 6, 0), True),
    _gate("user-jumps", "#PF(0x14) at the target: an instruction fetch",
          "mov $0x1000, %eax\n jmp *%rax", (14, 0x14, 0x1000 - 0xFFFF_FFFF_8000_0000), True),
    _gate("user-divides", "#DE of user mode", "xor %ecx, %ecx\n div %ecx", (0, NONE, 2), True),
]  # fmt: skip
# The user's text is at an address of the linker's choice: only what does not depend on it is told.
GATES = [case for case in GATES if case.name != "trap/user-jumps"]

_STACKS = [
    Case(
        "trap/from-user-uses-kernel-stack",
        "entry.S create_bounce_frame: from user mode the frame is at stack_switch's stack",
        """
        expecting @after
        to_user @u
@after: mov     $user_entry_stack_top, %rax
        sub     trap_stack, %rax
        report  %rax
        movzwl  trap_cs, %eax
        report  %rax
        report  trap_ss
        mov     $user_stack_top, %rax
        sub     trap_sp, %rax
        report  %rax""",
        (0, _USER_CS, _USER_SS, 0),
        user="@u: ud2",
    ),
    Case(
        "trap/unaligned-stack",
        "entry.S create_bounce_frame aligns the stack to 16 bytes before it pushes",
        """
        mov     %rsp, %rbx
        expecting @after
        and     $-16, %rsp
        sub     $24, %rsp
        lea     -8(%rsp), %rbp
        ud2
@after: sub     trap_stack, %rbp
        report  %rbp
        mov     %rbx, %rsp""",
        (0,),
    ),
    Case(
        "trap/saved-mask",
        "the frame's CS word has evtchn_upcall_mask in its upper half, RFLAGS.IF its opposite",
        """
        expecting @after
        ud2
@after: movzbl  trap_cs+4, %eax
        report  %rax
        mov     trap_flags, %rax
        and     $0x200, %eax
        report  %rax
        movb    $1, shared_info+VCPU_MASK
        expecting @again
        ud2
@again: movzbl  trap_cs+4, %eax
        report  %rax
        mov     trap_flags, %rax
        and     $0x200, %eax
        report  %rax""",
        (1, 0, 1, 0),
    ),
    Case(
        "trap/mask-clear",
        "with events enabled the frame shows IF, and a saved mask of 0",
        """
        events_on
        expecting @after
        ud2
@after: movzbl  trap_cs+4, %eax
        report  %rax
        mov     trap_flags, %rax
        and     $0x200, %eax
        report  %rax
        report  trap_mask""",
        (0, _IF, 0),
    ),
    Case(
        "trap/gate-masks-events",
        "trap_info.flags bit 2: the handler runs with events masked (here: vector 14)",
        """
        events_on
        expecting @after
        mov     NOT_MAPPED, %eax
@after: report  trap_mask""",
        (1,),
    ),
    Case(
        "trap/cr2",
        "vcpu_info.arch.cr2 has the address of the fault",
        """
        expecting @after
        mov     NOT_MAPPED+0x123, %eax
@after: report  trap_cr2
        mov     %cr2, %rax
        report  %rax""",
        (0xFFFF_FFFF_9000_0123,) * 2,
    ),
    Case(
        "trap/flags-in-handler",
        "create_bounce_frame clears TF, RF, NT, AC, VM for the handler; DF stays",
        """
        expecting @after
        pushf
        orl     $0x44400, (%rsp)
        popf
        ud2
@after: cld
        mov     trap_flags, %rax
        and     $0x44400, %eax
        report  %rax
        mov     handler_flags, %rax
        and     $0x44100, %eax
        report  %rax""",
        (0x44400, 0),
    ),
    Case(
        "trap/no-handler",
        "a vector without an entry crashes the domain (pv_inject_event: null handler)",
        "hypercall set_trap_table, $0\n ud2",
        (),
        crash="DomainCrash",
    ),
    Case(
        "trap/bad-stack",
        "a frame that cannot be written crashes the domain (entry.S, fixup to domain_crash_sync)",
        "mov $NOT_MAPPED, %rsp\n ud2",
        (),
        crash="DomainCrash",
    ),
    Case(
        "trap/stack-in-xen",
        "XSA-7's kin: a frame must not be written into the hypervisor's range",
        "movabs $HYPERVISOR_VIRT_START+0x1000, %rax\n mov %rax, %rsp\n ud2",
        (),
        crash="DomainCrash",
    ),
    Case(
        "trap/user-stack-in-xen",
        "as above, for the stack of stack_switch",
        """
        movabs  $HYPERVISOR_VIRT_START+0x1000, %rbx
        hypercall stack_switch, $FLAT_KERNEL_SS, %rbx
        to_user @u""",
        (),
        user="@u: ud2",
        crash="DomainCrash",
    ),
    Case(
        "trap/stack-on-page-table",
        "a frame must not be written over a page table (read-only for the kernel)",
        "mov l4, %rsp\n add $2048, %rsp\n ud2",
        (),
        crash="DomainCrash",
    ),
]

CASES = FAULTS + GATES + _STACKS
