"""Further vCPUs, vcpu_info at a place of the guest's, grants mapped and copied, memory exchange.

Source: xen/common/domain.c (do_vcpu_op), xen/arch/x86/domain.c (arch_set_info_guest),
xen/common/grant_table.c, xen/common/memory.c (memory_exchange).
"""

from __future__ import annotations

from pyxen.abi.errno import E

from ..case import Case

EINVAL, ENOENT, EEXIST, ENXIO = (-e.value for e in (E.INVAL, E.NOENT, E.EXIST, E.NXIO))

# pages and pages+4096 hold the vcpu_guest_context of vCPU 1.
CONTEXT = """
    mfn_of  l4, %rbx
    shl     $12, %rbx
    mov     %rbx, pages+CTX_CR3
    movq    $VGCF_in_kernel, pages+CTX_FLAGS
    movq    $@second, pages+CTX_RIP
    movq    $pages+16*4096, pages+CTX_RSP
    movw    $FLAT_KERNEL_CS, pages+CTX_CS
    movw    $FLAT_KERNEL_SS, pages+CTX_SS
    movq    $0x202, pages+CTX_RFLAGS
    movq    $FLAT_KERNEL_SS, pages+CTX_KERNEL_SS
    movq    $pages+18*4096, pages+CTX_KERNEL_SP
    movq    $event_entry, pages+CTX_EVENT
    movq    $77, pages+CTX_RDI
"""
_START = f"""{CONTEXT}
    hypercall vcpu_op, $VCPUOP_initialise, $1, $pages
    hypercall vcpu_op, $VCPUOP_up, $1, $0
"""
_WAIT = """
1:  hypercall sched_op, $SCHEDOP_yield, $0
    cmpq    $0, @flag
    je      1b
"""
_SLEEP = "2: hypercall sched_op, $SCHEDOP_block, $0\n jmp 2b"
FLAG = ".balign 8\n@flag: .quad 0\n"


def _two(name: str, source: str, code: str, *expect: int, data: str = FLAG) -> Case:
    return Case(f"smp/{name}", source, code, expect, data, vcpus=2)


SMP = [
    _two("start", "initialise, up: the second vCPU runs with the registers of the context",
         f"""{CONTEXT}
         result_of vcpu_op, $VCPUOP_is_up, $1, $0
         result_of vcpu_op, $VCPUOP_initialise, $1, $pages
         result_of vcpu_op, $VCPUOP_is_up, $1, $0
         result_of vcpu_op, $VCPUOP_up, $1, $0
         result_of vcpu_op, $VCPUOP_is_up, $1, $0
         {_WAIT}
         report @flag
         jmp @end
@second: mov %rdi, @flag
         {_SLEEP}
@end:""", 0, 0, 0, 0, 1, 77),
    _two("initialise-twice", "do_vcpu_op: EEXIST",
         f"{_START} result_of vcpu_op, $VCPUOP_initialise, $1, $pages\n jmp @end\n"
         f"@second: {_SLEEP}\n@end:", EEXIST),
    _two("up-before-initialise", "do_vcpu_op: EINVAL",
         "result_of vcpu_op, $VCPUOP_up, $1, $0", EINVAL),
    _two("down-before-initialise", "do_vcpu_op: it is down already: 0",
         "result_of vcpu_op, $VCPUOP_down, $1, $0", 0),
    _two("beyond", "do_vcpu_op: ENOENT", "result_of vcpu_op, $VCPUOP_is_up, $2, $0", ENOENT),
    _two("initialise-bad-cr3", "arch_set_info_guest: a page table that is not the guest's: EINVAL",
         f"{CONTEXT} movq $0x10000, pages+CTX_CR3\n"
         f" result_of vcpu_op, $VCPUOP_initialise, $1, $pages\n jmp @end\n@second: ud2\n@end:",
         EINVAL),
    _two("initialise-bad-rip", "arch_set_info_guest: a non-canonical RIP is EINVAL",
         f"{CONTEXT} movabs $NON_CANONICAL, %rax\n mov %rax, pages+CTX_RIP\n"
         f" result_of vcpu_op, $VCPUOP_initialise, $1, $pages\n jmp @end\n@second: ud2\n@end:",
         EINVAL),
    _two("timer-of-another", "set_singleshot_timer: only for the caller: EINVAL",
         "result_of vcpu_op, $VCPUOP_set_singleshot_timer, $1, $@t", EINVAL,
         data="@t: .quad 1<<40\n .long 0, 0"),
    _two("ipi", "an IPI bound to vCPU 1 wakes it from SCHEDOP_block",
         f"""movl $1, @ipi
         hypercall event_channel_op, $EVTCHNOP_bind_ipi, $@ipi
         {_START}
1:       hypercall sched_op, $SCHEDOP_yield, $0
         result_of event_channel_op, $EVTCHNOP_send, $@port
3:       hypercall sched_op, $SCHEDOP_yield, $0
         cmpq $0, @flag\n je 3b
         report @flag
         movzbl shared_info+64, %eax\n report %rax
         report shared_info+64+VCPU_PENDING_SEL
         jmp @end
@second: movb $1, shared_info+64+VCPU_MASK
         hypercall sched_op, $SCHEDOP_poll, $@poll
         movq $9, @flag
4:       hypercall sched_op, $SCHEDOP_poll, $@idle
         jmp 4b
@end:""", 0, 9, 1, 1,
         data=f"{FLAG}@ipi: .long 0\n@port: .long 0\n.balign 8\n"
         "@poll: .quad @port\n .long 1, 0\n .quad 0\n@idle: .quad 0\n .long 0, 0\n .quad 0"),
    _two("down-and-up", "VCPUOP_down of another vCPU, and up again: it goes on where it was",
         f"""{_START}
1:       hypercall sched_op, $SCHEDOP_yield, $0
         cmpq $2, @flag\n jb 1b
         result_of vcpu_op, $VCPUOP_down, $1, $0
         result_of vcpu_op, $VCPUOP_is_up, $1, $0
         movq $1, @flag
         result_of vcpu_op, $VCPUOP_up, $1, $0
3:       hypercall sched_op, $SCHEDOP_yield, $0
         cmpq $2, @flag\n jb 3b
         report $1
         jmp @end
@second: incq @flag
         hypercall sched_op, $SCHEDOP_yield, $0
         jmp @second
@end:""", 0, 0, 0, 1),
]  # fmt: skip

_REGISTER = "mov %rbx, @r\n result_of vcpu_op, $VCPUOP_register_vcpu_info, $0, $@r"
_INFO = "@r: .quad 0\n .long 64, 0"
VCPU_INFO = [
    Case("vcpu_info/register", "register_vcpu_info: the content moves; everything is pending then",
         f"mfn_of $pages, %rbx\n {_REGISTER}\n movzbl pages+64, %eax\n report %rax\n"
         " report pages+64+VCPU_PENDING_SEL\n movzbl pages+64+VCPU_MASK, %eax\n report %rax",
         (0, 1, -1, 1), _INFO),
    Case("vcpu_info/twice", "map_vcpu_info: EINVAL",
         f"mfn_of $pages, %rbx\n {_REGISTER}\n {_REGISTER}", (0, EINVAL), _INFO),
    Case("vcpu_info/page-table", "XSA: it may not lie in a page table (get_page_type): EINVAL",
         f"mfn_of l4, %rbx\n {_REGISTER}", (EINVAL,), _INFO),
    Case("vcpu_info/l1-table", "nor in an L1 table: EINVAL",
         f"mfn_of first_l1, %rbx\n {_REGISTER}", (EINVAL,), _INFO),
    Case("vcpu_info/mask", "the mask that counts is the one at the new place",
         f"""mfn_of $pages, %rbx\n {_REGISTER}
         hypercall event_channel_op, $EVTCHNOP_bind_ipi, $@ipi
         movb $0, pages+64\n movq $0, pages+64+VCPU_PENDING_SEL
         hypercall event_channel_op, $EVTCHNOP_send, $@ipi+4
         report event_count\n movzbl pages+64, %eax\n report %rax""", (0, 0, 1),
         _INFO + "\n@ipi: .long 0, 0"),
]  # fmt: skip

_MAP = (
    "result_of grant_table_op, $GNTTABOP_map_grant_ref, $@m, $1\n movswq @m+18, %rax\n report %rax"
)
GRANTS = [
    Case("grant/map-nobody", "map_grant_ref: GNTST_bad_domain",
         _MAP, (0, -2),
         "@m: .quad pages\n .long GNTMAP_host_map, 0\n .word 999, 0\n .long 0\n .quad 0"),
    Case("grant/map-fault", "gnttab_map_grant_ref: EFAULT",
         "result_of grant_table_op, $GNTTABOP_map_grant_ref, $NOT_MAPPED, $1",
         (-E.FAULT.value,)),
    Case("grant/unmap-bad-handle", "unmap_grant_ref: GNTST_bad_handle",
         "result_of grant_table_op, $GNTTABOP_unmap_grant_ref, $@u, $1\n movswq @u+20, %rax\n"
         " report %rax", (0, -4), "@u: .quad pages, 0\n .long 77, 0"),
    Case("grant/copy-own", "gnttab_copy between two pages of the guest's",
         """movq $4711, pages\n mfn_of $pages, %rbx\n mov %rbx, @c
         mfn_of $pages+4096, %rbx\n mov %rbx, @c+16
         result_of grant_table_op, $GNTTABOP_copy, $@c, $1\n movswq @c+36, %rax\n report %rax
         report pages+4096""", (0, 0, 4711),
         "@c: .quad 0\n .word DOMID_SELF, 0, 0, 0\n .quad 0\n .word DOMID_SELF, 0, 0, 0\n"
         " .word 8, 0, 0, 0"),
    Case("grant/copy-over-page", "gnttab_copy: beyond the page is GNTST_bad_copy_arg",
         """mfn_of $pages, %rbx\n mov %rbx, @c\n mov %rbx, @c+16
         result_of grant_table_op, $GNTTABOP_copy, $@c, $1\n movswq @c+36, %rax\n report %rax""",
         (0, -10),
         "@c: .quad 0\n .word DOMID_SELF, 4092, 0, 0\n .quad 0\n .word DOMID_SELF, 0, 0, 0\n"
         " .word 8, 0, 0, 0"),
    Case("grant/copy-to-table", "XSA: a page table is no destination (get_page_type)",
         """mfn_of $pages, %rbx\n mov %rbx, @c\n mfn_of first_l1, %rbx\n mov %rbx, @c+16
         result_of grant_table_op, $GNTTABOP_copy, $@c, $1\n movswq @c+36, %rax
         test %rax, %rax\n sets %al\n movzbl %al, %eax\n report %rax""", (0, 1),
         "@c: .quad 0\n .word DOMID_SELF, 0, 0, 0\n .quad 0\n .word DOMID_SELF, 0, 0, 0\n"
         " .word 8, 0, 0, 0"),
    Case("grant/status-frames-v1", "get_status_frames with version 1: GNTST_general_error",
         "result_of grant_table_op, $GNTTABOP_get_status_frames, $@s, $1\n movswq @s+6, %rax\n"
         " report %rax", (0, -1), "@s: .long 1\n .word DOMID_SELF, 0\n .quad @f\n@f: .quad 0"),
    Case("grant/seeded", "the console's is seeded by the tool stack, for domain 0",
         """hypercall grant_table_op, $GNTTABOP_setup_table, $@s, $1
         mov @f, %rbx\n shl $12, %rbx\n or $PAGE_RW, %rbx
         hypercall update_va_mapping, $pages, %rbx, $UVMF_INVLPG
         movzwl pages+2, %eax\n report %rax""", (0,),
         "@s: .word DOMID_SELF, 0\n .long 1, 0, 0\n .quad @f\n@f: .quad 0"),
]  # fmt: skip

_EXCHANGE = (
    "@x: .quad @in, 1\n .long 0, 0\n .word DOMID_SELF, 0, 0, 0\n"
    " .quad @out, 1\n .long 0, 0\n .word DOMID_SELF, 0, 0, 0\n .quad 0\n"
    "@in: .quad 0\n@out: .quad 0"
)
EXCHANGE = [
    Case("exchange/one", "memory_exchange: a frame for one that is not mapped",
         """mfn_of $pages, %rbx\n mov %rbx, @in\n movq $0x123, @out
         hypercall update_va_mapping, $pages, $0, $UVMF_INVLPG
         result_of memory_op, $XENMEM_exchange, $@x\n report @x+64
         mov @out, %rbp\n movabs $MACH2PHYS_VIRT_START, %rcx\n report (%rcx,%rbp,8)""",
         (0, 1, 0x123), _EXCHANGE),
    Case("exchange/xen-frame", "memory_exchange: a frame that is not the guest's is EINVAL",
         "movq $0x10, @in\n result_of memory_op, $XENMEM_exchange, $@x", (EINVAL,), _EXCHANGE),
]  # fmt: skip

CASES = SMP + VCPU_INFO + GRANTS + EXCHANGE
