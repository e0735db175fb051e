"""Events, timers (the clock moves when the guest sleeps), multicall, vCPU areas, grants, memory.

Source: xen/common/event_2l.c, xen/common/sched/core.c, xen/common/domain.c, public/vcpu.h.
"""

from __future__ import annotations

from pyxen.abi.errno import E
from pyxen.hypervisor.domain import ShutdownReason

from ..case import Case

EPERM, EFAULT, EINVAL = -E.PERM.value, -E.FAULT.value, -E.INVAL.value
ENOSYS, ENOSPC, EEXIST = -E.NOSYS.value, -E.NOSPC.value, -E.EXIST.value

_IPI = "hypercall event_channel_op, $EVTCHNOP_bind_ipi, $@ipi"
_IPI_DATA = "@ipi: .long 0\n@ipi_port: .long 0"
_SEND = "hypercall event_channel_op, $EVTCHNOP_send, $@ipi_port"
_VIRQ = "hypercall event_channel_op, $EVTCHNOP_bind_virq, $@virq"
_VIRQ_DATA = "@virq: .long VIRQ_TIMER, 0\n@virq_port: .long 0, 0"
_SOON = """
    mov     shared_info+VCPU_TIME+16, %rbx
    add     $50000000, %rbx"""

EVENTS = [
    Case("event/upcall", "an event that is not masked: the callback, before the next instruction",
         f"{_IPI}\n events_on\n {_SEND}\n@here: nop\n report event_count\n"
         " mov event_rip, %rax\n sub $@here, %rax\n report %rax\n report event_mask\n"
         " report event_sel\n report event_ports", (1, 0, 1, 1, 1 << 3), _IPI_DATA),
    Case("event/masked-vcpu", "evtchn_upcall_mask: pending, but no upcall",
         f"{_IPI}\n {_SEND}\n report event_count\n movzbl shared_info, %eax\n report %rax\n"
         " report shared_info+EVTCHN_PENDING", (0, 1, 1 << 3), _IPI_DATA),
    Case("event/masked-port", "evtchn_mask: the pending bit only (event_2l.c set_pending)",
         f"{_IPI}\n events_on\n movq $8, shared_info+EVTCHN_MASK\n {_SEND}\n report event_count\n"
         " movzbl shared_info, %eax\n report %rax\n report shared_info+EVTCHN_PENDING",
         (0, 0, 1 << 3), _IPI_DATA),
    Case("event/unmask-delivers", "EVTCHNOP_unmask of a pending port",
         f"{_IPI}\n events_on\n movq $8, shared_info+EVTCHN_MASK\n {_SEND}\n"
         " hypercall event_channel_op, $EVTCHNOP_unmask, $@ipi_port\n report %rax\n"
         " report event_count", (0, 1), _IPI_DATA),
    Case("event/pending-twice", "a port that is pending already is not delivered again",
         f"{_IPI}\n {_SEND}\n movb $0, shared_info\n {_SEND}\n movzbl shared_info, %eax\n"
         " report %rax", (0,), _IPI_DATA),
    Case("event/iret-delivers", "an event that waited comes when iret unmasks",
         f"{_IPI}\n {_SEND}\n report event_count\n mov %rsp, %rbp\n"
         " push_iret $@on, $FLAT_KERNEL_CS&~3, $0x202, %rbp, $FLAT_KERNEL_SS\n iret\n"
         "@on: report event_count\n mov event_rip, %rax\n sub $@on, %rax\n report %rax",
         (0, 1, 0), _IPI_DATA),
    Case("event/block-delivers", "SCHEDOP_block unmasks, and returns at once if one is pending",
         f"{_IPI}\n {_SEND}\n hypercall sched_op, $SCHEDOP_block, $0\n report %rax\n"
         " report event_count", (0, 1), _IPI_DATA),
    Case("event/to-user-mode", "an event that arrives on the way to user mode: from user mode",
         f"{_IPI}\n {_SEND}\n expecting @after\n to_user @u\n@after: report event_count\n"
         " movzwl event_cs, %eax\n report %rax", (1, 0xE033), _IPI_DATA, user="@u: syscall"),
    Case("event/loopback", "alloc_unbound and bind_interdomain inside of the domain",
         """hypercall event_channel_op, $EVTCHNOP_alloc_unbound, $@a
         mov @a_port, %eax\n mov %eax, @b_remote
         result_of event_channel_op, $EVTCHNOP_bind_interdomain, $@b
         mov @a_port, %eax\n report %rax\n mov @b_local, %eax\n report %rax
         movq $0, shared_info+EVTCHN_PENDING
         result_of event_channel_op, $EVTCHNOP_send, $@b_local
         report shared_info+EVTCHN_PENDING""", (0, 3, 4, 0, 1 << 3),
         "@a: .word DOMID_SELF, DOMID_SELF\n@a_port: .long 0\n"
         "@b: .word DOMID_SELF, 0\n@b_remote: .long 0\n@b_local: .long 0"),
    Case("event/status", "EVTCHNOP_status of an IPI",
         f"{_IPI}\n mov @ipi_port, %eax\n mov %eax, @s+4\n"
         " result_of event_channel_op, $EVTCHNOP_status, $@s\n mov @s+8, %eax\n report %rax",
         (0, 5), _IPI_DATA + "\n@s: .word DOMID_SELF, 0\n .long 0, 0, 0, 0, 0"),
    Case("event/virq-twice", "bind_virq: EEXIST",
         f"{_VIRQ}\n result_of event_channel_op, $EVTCHNOP_bind_virq, $@virq", (EEXIST,),
         _VIRQ_DATA),
    Case("event/send-virq", "a VIRQ's port cannot send: EINVAL",
         f"{_VIRQ}\n result_of event_channel_op, $EVTCHNOP_send, $@virq_port", (EINVAL,),
         _VIRQ_DATA),
    Case("event/limit", "XSA: 4096 ports with the 2-level ABI, then ENOSPC",
         """xor %ebp, %ebp
         1: hypercall event_channel_op, $EVTCHNOP_bind_ipi, $@ipi
         test %rax, %rax\n jnz 2f\n inc %ebp\n cmp $5000, %ebp\n jb 1b
         2: report %rax\n report %rbp""", (ENOSPC, 4093), _IPI_DATA),
    Case("event/bind_vcpu-ipi", "an IPI belongs to its vCPU: EINVAL",
         f"{_IPI}\n mov @ipi_port, %eax\n mov %eax, @v\n"
         " result_of event_channel_op, $EVTCHNOP_bind_vcpu, $@v", (EINVAL,),
         _IPI_DATA + "\n@v: .long 0, 0"),
]  # fmt: skip

TIMERS = [
    Case("timer/singleshot", "VCPUOP_set_singleshot_timer, then block: VIRQ_TIMER once, in time",
         f"{_VIRQ}\n {_SOON}\n mov %rbx, @t\n"
         " result_of vcpu_op, $VCPUOP_set_singleshot_timer, $0, $@t\n"
         " hypercall sched_op, $SCHEDOP_block, $0\n report event_count\n report event_ports",
         (0, 1, 1 << 3), _VIRQ_DATA + "\n.balign 8\n@t: .quad 0\n .long 0, 0"),
    Case("timer/set_timer_op", "HYPERVISOR_set_timer_op, the older form",
         f"{_VIRQ}\n {_SOON}\n result_of set_timer_op, %rbx\n"
         " hypercall sched_op, $SCHEDOP_block, $0\n report event_count", (0, 1), _VIRQ_DATA),
    Case("timer/past", "set_timer_op: a deadline that is over fires at once",
         f"{_VIRQ}\n hypercall set_timer_op, $1\n hypercall sched_op, $SCHEDOP_block, $0\n"
         " report event_count", (1,), _VIRQ_DATA),
    Case("timer/poll-timeout", "SCHEDOP_poll ends at its timeout, with events masked",
         f"{_SOON}\n mov %rbx, @poll+16\n result_of sched_op, $SCHEDOP_poll, $@poll\n"
         " movzbl shared_info+VCPU_MASK, %eax\n report %rax", (0, 1),
         "@poll: .quad 0\n .long 0, 0\n .quad 0"),
    Case("timer/poll-port", "SCHEDOP_poll ends with the port, which is masked; no upcall",
         f"{_VIRQ}\n movq $8, shared_info+EVTCHN_MASK\n {_SOON}\n"
         " hypercall set_timer_op, %rbx\n result_of sched_op, $SCHEDOP_poll, $@poll\n"
         " report event_count\n report shared_info+EVTCHN_PENDING", (0, 0, 1 << 3),
         _VIRQ_DATA + "\n.balign 8\n@poll: .quad @port\n .long 1, 0\n .quad 0\n@port: .long 3"),
    Case("timer/watchdog", "SCHEDOP_watchdog: SHUTDOWN_watchdog when it is not fed",
         "result_of sched_op, $SCHEDOP_watchdog, $@w\n"
         " hypercall sched_op, $SCHEDOP_block, $0\n ud2",
         (1,), "@w: .long 0, 1", reason=ShutdownReason.WATCHDOG),
    Case("timer/time-area", "VCPUOP_register_vcpu_time_memory_area: a copy of the time record",
         "result_of vcpu_op, $VCPUOP_register_vcpu_time_memory_area, $0, $@a\n"
         " mov pages+24, %eax\n sub shared_info+VCPU_TIME+24, %eax\n mov %eax, %eax\n report %rax",
         (0, 0), "@a: .quad pages"),
    Case("timer/runstate-area", "VCPUOP_register_runstate_memory_area: it is running",
         "result_of vcpu_op, $VCPUOP_register_runstate_memory_area, $0, $@a\n mov pages, %eax\n"
         " report %rax", (0, 0), "@a: .quad pages"),
]  # fmt: skip

MULTICALLS = [
    Case("multicall/two", "each entry has its own result; the whole is 0",
         "result_of multicall, $@list, $2\n report @list+8\n report @list+72", (0, 4096, ENOSYS),
         "@list: .quad __HYPERVISOR_xen_version, 77, XENVER_pagesize, 0, 0, 0, 0, 0\n"
         " .quad 64, 77, 0, 0, 0, 0, 0, 0\n # hypercall xen_version"),
    Case("multicall/none", "0", "result_of multicall, $0, $0", (0,)),
    Case("multicall/fault", "EFAULT", "result_of multicall, $NOT_MAPPED, $1", (EFAULT,)),
    Case("multicall/in-xen", "guest_handle_okay: EFAULT",
         "movabs $HYPERVISOR_VIRT_START, %rbx\n result_of multicall, %rbx, $1", (EFAULT,)),
    Case("multicall/read-only", "a list that cannot be written: EFAULT",
         "remap $pages, PAGE_RO\n result_of multicall, $pages, $1", (EFAULT,)),
    Case("multicall/nested", "do_multicall: a multicall in a multicall is EINVAL",
         "result_of multicall, $@list, $1\n report @list+8", (0, EINVAL),
         "@list: .quad __HYPERVISOR_multicall, 77, @list, 1, 0, 0, 0, 0"),
    Case("multicall/over-a-fault", "the entries before the fault are done",
         "lea pages+4096-64, %rbx\n movq $__HYPERVISOR_xen_version, (%rbx)\n"
         " movq $XENVER_pagesize, 16(%rbx)\n"
         " hypercall update_va_mapping, $pages+4096, $0, $UVMF_INVLPG\n"
         " result_of multicall, %rbx, $2\n report 8(%rbx)", (EFAULT, 4096)),
    Case("multicall/long", "5000 entries: preempted and continued, all done",
         "mov $pages, %rdi\n mov $512, %ecx\n1: movq $__HYPERVISOR_xen_version, (%rdi)\n"
         " movq $XENVER_pagesize, 16(%rdi)\n add $64, %rdi\n dec %ecx\n jnz 1b\n"
         " result_of multicall, $pages, $512\n report pages+8\n report pages+511*64+8",
         (0, 4096, 4096), "# hypercall xen_version"),
]  # fmt: skip

ENDINGS = [
    Case(f"shutdown/{name}", "SCHEDOP_shutdown: the reason is the guest's",
         f"report $1\n shutdown {value}\n ud2", (1,), reason=reason)
    for name, value, reason in (
        ("reboot", "SHUTDOWN_reboot", ShutdownReason.REBOOT),
        ("suspend", "SHUTDOWN_suspend", ShutdownReason.SUSPEND),
        ("crash", "SHUTDOWN_crash", ShutdownReason.CRASH),
        ("watchdog", "SHUTDOWN_watchdog", ShutdownReason.WATCHDOG),
    )
]  # fmt: skip
ENDINGS += [
    Case("shutdown/last-vcpu-down", "vcpu_op: the last one going down is a power-off",
         "report $1\n hypercall vcpu_op, $VCPUOP_down, $0, $0\n ud2", (1,)),
    Case("console/ring-full", "2048 bytes fit into the ring",
         "mov console_ring, %rdi\n lea CONSOLE_OUT(%rdi), %rdi\n mov $65, %al\n mov $2048, %ecx\n"
         " cld\n rep stosb\n mov console_ring, %rdi\n addl $2048, CONSOLE_OUT_PROD(%rdi)\n"
         " result_of event_channel_op, $EVTCHNOP_send, $console_port", (0,),
         console=b"A" * 2048),
    Case("console/ring-broken", "a producer more than the ring ahead: nothing is shown, no crash",
         "mov console_ring, %rdi\n movl $0x7fffffff, CONSOLE_OUT_PROD(%rdi)\n"
         " result_of event_channel_op, $EVTCHNOP_send, $console_port", (0,)),
]  # fmt: skip

MEMORY = [
    Case("memory/decrease", "XENMEM_decrease_reservation takes a frame that is not mapped",
         """mfn_of $pages, %rbx\n mov %rbx, @f
         hypercall update_va_mapping, $pages, $0, $UVMF_INVLPG
         result_of memory_op, $XENMEM_decrease_reservation, $@r
         result_of memory_op, $XENMEM_current_reservation, $@d
         shl $12, %rbx\n or $PAGE_RW, %rbx
         hypercall update_va_mapping, $pages, %rbx, $UVMF_INVLPG
         test %rax, %rax\n sets %al\n movzbl %al, %eax\n report %rax""", (1, 2047, 1),
         "@r: .quad @f, 1\n .long 0, 0\n .word DOMID_SELF\n.balign 8\n@f: .quad 0\n"
         "@d: .word DOMID_SELF"),
    Case("memory/populate", "XENMEM_populate_physmap: a new frame, zero, with its M2P entry",
         """result_of memory_op, $XENMEM_populate_physmap, $@r
         mov @f, %rbx\n movabs $MACH2PHYS_VIRT_START, %rcx\n report (%rcx,%rbx,8)
         shl $12, %rbx\n or $PAGE_RW, %rbx
         result_of update_va_mapping, $pages, %rbx, $UVMF_INVLPG\n report pages""",
         (1, 0x9999, 0, 0),
         "@r: .quad @f, 1\n .long 0, 0\n .word DOMID_SELF\n.balign 8\n@f: .quad 0x9999"),
    Case("memory/decrease-table", "guest_remove_page: a page table goes with its last use: 1 done",
         "mfn_of l4, %rbx\n mov %rbx, @f\n"
         " result_of memory_op, $XENMEM_decrease_reservation, $@r", (1,),
         "@r: .quad @f, 1\n .long 0, 0\n .word DOMID_SELF\n.balign 8\n@f: .quad 0"),
    Case("memory/machphys_mapping", "XENMEM_machphys_mapping: where the M2P is",
         "result_of memory_op, $XENMEM_machphys_mapping, $@m\n report @m",
         (0, 0xFFFF_8000_0000_0000), "@m: .quad 0, 0, 0"),
    Case("memory/into-xen", "no result goes into the hypervisor's range: EFAULT",
         "movabs $HYPERVISOR_VIRT_START, %rbx\n"
         " result_of memory_op, $XENMEM_machphys_mapping, %rbx", (EFAULT,)),
    Case("memory/m2p-read-only", "the M2P is read-only for the guest: #PF(3)",
         "movabs $MACH2PHYS_VIRT_START, %rbx\n expecting @after\n movq $0, (%rbx)\n"
         "@after: report_trap", (14, 3)),
    Case("memory/xen-not-readable", "what Xen does not show is not there: #PF",
         "movabs $HYPERVISOR_VIRT_END-4096, %rbx\n expecting @after\n mov (%rbx), %rax\n"
         "@after: report trap_vector", (14,)),
    Case("memory/user-reads-m2p", "fill_ro_mpt: without m2p_strict user mode may read the M2P",
         "expecting @after\n to_user @u\n@after: report trap_vector", (6,),
         user="@u: movabs $MACH2PHYS_VIRT_START, %rax\n mov (%rax), %rax\n ud2"),
    Case("memory/user-reads-kernel", "a kernel page without the user bit is not the user's: #PF",
         "expecting @after\n to_user @u\n@after: report_trap", (14, 5),
         user="@u: mov pages, %rax\n ud2"),
]  # fmt: skip

GRANTS = [
    Case("grant/setup", "GNTTABOP_setup_table lists the frames; the table can be mapped",
         """result_of grant_table_op, $GNTTABOP_setup_table, $@s, $1
         movswq @s+8, %rax\n report %rax
         mov @f, %rbx\n shl $12, %rbx\n or $PAGE_RW, %rbx
         result_of update_va_mapping, $pages, %rbx, $UVMF_INVLPG
         movzwl pages, %eax\n report %rax""", (0, 0, 0, 1),
         "@s: .word DOMID_SELF, 0\n .long 2, 0, 0\n .quad @f\n@f: .quad 0, 0"),
    Case("grant/setup-too-many", "more than the maximum: GNTST_general_error",
         "result_of grant_table_op, $GNTTABOP_setup_table, $@s, $1\n movswq @s+8, %rax\n"
         " report %rax", (0, -1),
         "@s: .word DOMID_SELF, 0\n .long 1000, 0, 0\n .quad @f\n@f: .quad 0"),
    Case("grant/setup-foreign", "another domain: GNTST_bad_domain",
         "result_of grant_table_op, $GNTTABOP_setup_table, $@s, $1\n movswq @s+8, %rax\n"
         " report %rax", (0, -2), "@s: .word 999, 0\n .long 1, 0, 0\n .quad @f\n@f: .quad 0"),
    Case("grant/query", "GNTTABOP_query_size: one frame to begin with, 64 at most",
         "result_of grant_table_op, $GNTTABOP_query_size, $@q, $1\n mov @q+4, %eax\n report %rax\n"
         " mov @q+8, %eax\n report %rax", (0, 1, 64), "@q: .word DOMID_SELF, 0\n .long 0, 0, 0"),
    Case("grant/version", "GNTTABOP_get_version: 1",
         "result_of grant_table_op, $GNTTABOP_get_version, $@g, $1\n mov @g+4, %eax\n report %rax",
         (0, 1), "@g: .word DOMID_SELF, 0\n .long 0"),
]  # fmt: skip

CASES = EVENTS + TIMERS + MULTICALLS + ENDINGS + MEMORY + GRANTS
