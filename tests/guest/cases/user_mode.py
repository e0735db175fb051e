"""User mode: system calls, what a hypercall keeps, and every form of iret.

Source: xen/arch/x86/x86_64/entry.S, xen/arch/x86/pv/iret.c, public/arch-x86/xen-x86_64.h.
"""

from __future__ import annotations

from ..case import NONE, Case

_IF, _DF, _CF = 1 << 9, 1 << 10, 1
_USER_CS, _USER_SS = 0xE033, 0xE02B

SYSCALLS = [
    Case(
        "syscall/frame",
        "entry.S: RCX and R11 of the frame are RIP behind SYSCALL and RFLAGS; CS, SS are FLAT_USER",
        """
        expecting @after
        to_user @u
@after: report  syscall_rax
        mov     syscall_rcx, %rax
        sub     trap_rip, %rax
        report  %rax
        mov     trap_rip, %rax
        sub     $@end, %rax
        report  %rax
        movzwl  trap_cs, %eax
        report  %rax
        report  trap_ss
        mov     syscall_r11, %rax
        and     $0x201, %eax
        report  %rax""",
        (39, 0, 0, _USER_CS, _USER_SS, _IF | _CF),
        user="@u: mov $39, %eax\n stc\n syscall\n@end: ud2",
    ),
    Case(
        "syscall/number-is-no-hypercall",
        "SYSCALL of user mode is the kernel's, whatever is in RAX: no hypercall from user mode",
        """
        expecting @after
        to_user @u
@after: report  trap_vector
        report  syscall_rax""",
        (0x100, 29),
        user="""@u: mov $29, %eax
        mov $2, %edi
        syscall
        ud2""",
    ),
    Case(
        "syscall/no-callback",
        "without a syscall callback it is #UD (entry.S)",
        """
        hypercall set_callbacks, $event_entry, $failsafe_entry, $0
        expecting @after
        to_user @u
@after: report  trap_vector""",
        (6,),
        user="@u: syscall",
    ),
    Case(
        "syscall/masks-events",
        "CALLBACKF_mask_events of the syscall callback",
        """
        result_of callback_op, $CALLBACKOP_register, $@arg
        events_on
        expecting @after
        to_user @u
@after: report  trap_mask
        movzbl  trap_cs+4, %eax
        report  %rax""",
        (0, 1, 0),
        "@arg: .word CALLBACKTYPE_syscall, CALLBACKF_mask_events, 0, 0\n .quad syscall_entry",
        user="@u: syscall",
    ),
    Case(
        "syscall/does-not-mask-events",
        "without the flag the mask is as in user mode",
        """
        events_on
        expecting @after
        to_user @u
@after: report  trap_mask""",
        (0,),
        user="@u: syscall",
    ),
    Case(
        "syscall/gs-base",
        "user and kernel have a GS base each (SEGBASE_GS_*), swapped on the way",
        """
        hypercall set_segment_base, $SEGBASE_GS_KERNEL, $pages
        hypercall set_segment_base, $SEGBASE_GS_USER, $user_data
        movq    $111, pages
        movq    $222, user_data
        expecting @after
        to_user @u
@after: report  syscall_rax
        report  %gs:0""",
        (222, 111),
        user="@u: mov %gs:0, %rax\n syscall",
    ),
    Case(
        "hypercall/keeps-registers",
        "all registers but RAX, RCX and R11 survive a hypercall (public/arch-x86/xen-x86_64.h)",
        """
        mov     $1, %ebx
        mov     $2, %ebp
        mov     $3, %r12d
        mov     $4, %r15d
        mov     $5, %r9d
        hypercall xen_version, $XENVER_version, $77, $78, $79, $80
        report  %rbx
        report  %rbp
        report  %r12
        report  %r15
        report  %r9
        report  %rdi
        report  %rsi
        report  %rdx
        report  %r10
        report  %r8""",
        (1, 2, 3, 4, 5, 0, 77, 78, 79, 80),
    ),
    Case(
        "hypercall/rflags",
        "flags survive a hypercall",
        """
        stc
        std
        mov $XENVER_version, %edi
        mov $__HYPERVISOR_xen_version, %eax
        syscall
        pushf
        cld
        pop     %rax
        and     $0x401, %eax
        report  %rax""",
        (_DF | _CF,),
        data="# hypercall xen_version",
    ),
]

IRETS = [
    Case(
        "iret/to-kernel",
        "pv/iret.c do_iret: CS with RPL below 3 stays in the kernel; all registers from the frame",
        """
        mov     %rsp, %rbp
        mov     $7, %eax
        mov     $8, %r11d
        mov     $9, %ecx
        push_iret $@after, $FLAT_KERNEL_CS&~3, $0x202, %rbp, $FLAT_KERNEL_SS
        mov     $__HYPERVISOR_iret, %eax
        xor     %ecx, %ecx
        syscall
        ud2
@after: mov     %rcx, %rbx
        mov     %r11, %r12
        report  %rax
        report  %r12
        report  %rbx
        sub     %rsp, %rbp
        report  %rbp""",
        (7, 8, 9, 0),
    ),
    Case(
        "iret/unmasks-events",
        "do_iret: evtchn_upcall_mask becomes the opposite of the frame's IF",
        """
        mov     %rsp, %rbp
        push_iret $@on, $FLAT_KERNEL_CS&~3, $0x202, %rbp, $FLAT_KERNEL_SS
        iret
@on:    movzbl  shared_info+VCPU_MASK, %eax
        report  %rax
        push_iret $@off, $FLAT_KERNEL_CS&~3, $0x2, %rbp, $FLAT_KERNEL_SS
        iret
@off:   movzbl  shared_info+VCPU_MASK, %eax
        report  %rax""",
        (0, 1),
    ),
    Case(
        "iret/in-syscall",
        "do_iret with VGCF_in_syscall: the way out is SYSRET, RCX and R11 are RIP and RFLAGS",
        """
        expecting @after
        mov     $1, %ecx
        mov     $1, %r11d
        push_iret $@u, $FLAT_USER_CS64, $0x203, $user_stack_top, $FLAT_USER_SS64, $VGCF_in_syscall
        iret
@after: mov     user_data, %rax
        sub     $@u, %rax
        report  %rax
        mov     user_data+8, %rax
        and     $0x201, %eax
        report  %rax""",
        (0, 0x201),
        user="@u: mov %rcx, user_data\n mov %r11, user_data+8\n syscall",
    ),
    Case(
        "iret/flags",
        "do_iret: IOPL and VM are not the frame's to set; user mode has IF on",
        """
        expecting @after
        push_iret $@u, $FLAT_USER_CS64, $0x3cd7|0x20000, $user_stack_top, $FLAT_USER_SS64
        iret
@after: mov     user_data, %rax
        and     $0x23fd7, %eax
        report  %rax""",
        (0xED7,),
        user="@u: pushf\n cld\n pop %rax\n mov %rax, user_data\n syscall",
    ),
    Case(
        "iret/no-user-table",
        "do_iret: user mode without a user page table crashes the domain",
        "mmuext MMUEXT_NEW_USER_BASEPTR, $0\n report %rax\n to_user @u",
        (0,),
        user="@u: syscall",
        crash="DomainCrash",
    ),
    Case(
        "iret/frame-not-mapped",
        "do_iret: a frame that cannot be read crashes the domain",
        "mov $NOT_MAPPED, %rsp\n iret",
        (),
        crash="DomainCrash",
    ),
    Case(
        "iret/frame-in-xen",
        "do_iret: __copy_from_guest of the hypervisor's range is refused: crash",
        "movabs $HYPERVISOR_VIRT_START, %rax\n mov %rax, %rsp\n iret",
        (),
        crash="DomainCrash",
    ),
    Case(
        "iret/non-canonical-rip",
        "XSA-7: Xen's own iret faults; the guest sees #GP(0) there (entry.S, exception table)",
        """
        expecting @after
        movabs  $NON_CANONICAL, %rbx
        push_iret %rbx, $FLAT_USER_CS64, $0x202, $user_stack_top, $FLAT_USER_SS64
        iret
@after: report_trap
        sub     trap_rip, %rbx
        report  %rbx""",
        (13, 0, 0),
    ),
    Case(
        "iret/non-canonical-rip-sysret",
        "XSA-7: the same with VGCF_in_syscall: Xen does not use SYSRET for it",
        """
        expecting @after
        movabs  $NON_CANONICAL, %rbx
        push_iret %rbx, $FLAT_USER_CS64, $0x202, $user_stack_top, $FLAT_USER_SS64, $VGCF_in_syscall
        iret
@after: report_trap
        sub     trap_rip, %rbx
        report  %rbx""",
        (13, 0, 0),
    ),
    Case(
        "iret/bad-cs",
        "a code selector that is none: Xen's iret faults, the guest sees #GP(selector)",
        """
        expecting @after
        push_iret $@u, $0x1233, $0x202, $user_stack_top, $FLAT_USER_SS64
        iret
@after: report_trap""",
        (13, 0x1230),
        user="@u: syscall",
    ),
    Case(
        "iret/xen-cs",
        "Xen's own code selector has DPL 0: #GP(selector)",
        """
        expecting @after
        push_iret $@u, $0xe00b, $0x202, $user_stack_top, $FLAT_USER_SS64
        iret
@after: report_trap""",
        (13, 0xE008),
        user="@u: syscall",
    ),
    Case(
        "iret/tf",
        "TF in the frame: one instruction of user mode, then #DB",
        """
        expecting @after
        push_iret $@u, $FLAT_USER_CS64, $0x302, $user_stack_top, $FLAT_USER_SS64
        iret
@after: report_trap
        mov     trap_rip, %rax
        sub     $@u, %rax
        report  %rax""",
        (1, NONE, 1),
        user="@u: nop\n nop\n ud2",
    ),
    Case(
        "iret/32-bit-user",
        "FLAT_USER_CS32: user mode runs 32-bit code",
        """
        expecting @after
        push_iret $0x400000, $FLAT_USER_CS32, $0x202, $0x400800, $FLAT_USER_SS32
        mov     $1, %eax
        iret
@after: report_trap
        report  trap_rip""",
        (14, 0x14, 0x40_0000),
    ),
]

CASES = SYSCALLS + IRETS
