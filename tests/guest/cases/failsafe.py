"""The failsafe callback: what becomes of data segments that a vCPU switch cannot load any more.

Source: xen/arch/x86/domain.c (load_segments), public/arch-x86/xen.h (HYPERVISOR_set_callbacks).
The frame is that of a trap, with the selectors DS, ES, FS and GS in the place of the error code.
"""

from __future__ import annotations

from ..case import Case
from .vcpus import CONTEXT, FLAG

_FAILSAFE, _SYSCALL = 0x101, 0x100
_KERNEL_CS, _USER_CS, _SS = 0xE030, 0xE033, 0xE02B

# vCPU 1 does nothing, again and again.
_IDLE = """
    jmp     @end
@second:
    hypercall sched_op, $SCHEDOP_yield, $0
    jmp     @second
@end:"""
# An LDT of 512 descriptors, of which selector 0xf is data.
_LDT_PAGE = "pages+20*4096"
_LDT = f"""
    movabs  $0x00cff3000000ffff, %rax
    mov     %rax, {_LDT_PAGE}+8
    remap   ${_LDT_PAGE}, PAGE_RO
    mmuext  MMUEXT_SET_LDT, ${_LDT_PAGE}, $512
"""
_NO_LDT = "mmuext MMUEXT_SET_LDT, $0, $0\n"
_YIELD = "hypercall sched_op, $SCHEDOP_yield, $0\n"
# The failsafe callback after the next change of the vCPU.
_SWITCH = f"expecting @after\n {_YIELD}@back: report $0\n jmp @end\n@after:\n"
_START_SECOND = f"""{CONTEXT}
    hypercall vcpu_op, $VCPUOP_initialise, $1, $pages
    hypercall vcpu_op, $VCPUOP_up, $1, $0
"""
_ALL_SEGMENTS = "".join(f"mov %eax, %{name}\n" for name in ("ds", "es", "fs", "gs"))
_REPORT_SEGMENTS = "".join(
    f"mov %{name}, %eax\n movzwl %ax, %eax\n report %rax\n" for name in ("ds", "es", "fs", "gs")
)
_REGISTER = (
    "@arg: .word CALLBACKTYPE_failsafe, CALLBACKF_mask_events, 0, 0\n .quad failsafe_entry\n"
)


def _two(name: str, source: str, code: str, *expect: int, data: str = FLAG, user: str = "") -> Case:
    code = f"{_START_SECOND}{code}"
    if "@second:" not in code:
        code += _IDLE
    return Case(f"failsafe/{name}", source, code, expect, data, user, vcpus=2)


CASES = [
    _two("frame", "load_segments: the frame shows the selectors that could not be loaded",
         f"""{_LDT} mov $0xf, %eax\n {_ALL_SEGMENTS}
         hypercall set_segment_base, $SEGBASE_FS, $pages
         {_NO_LDT} mov %rsp, %rbx
         {_SWITCH}
         report trap_vector
         report failsafe_ds\n report failsafe_es\n report failsafe_fs\n report failsafe_gs
         mov $@back, %rax\n sub trap_rip, %rax\n report %rax
         movzwl trap_cs, %eax\n report %rax
         report trap_ss
         sub trap_sp, %rbx\n report %rbx""",
         _FAILSAFE, 0xF, 0xF, 0xF, 0xF, 0, _KERNEL_CS, _SS, 0),
    _two("null-afterwards", "load_segments: those are null now; FS and GS keep their bases",
         f"""{_LDT} mov $0xf, %eax\n {_ALL_SEGMENTS}
         movq $4711, pages+21*4096\n movq $4712, pages+22*4096
         hypercall set_segment_base, $SEGBASE_FS, $pages+21*4096
         hypercall set_segment_base, $SEGBASE_GS_KERNEL, $pages+22*4096
         {_NO_LDT}{_SWITCH}{_REPORT_SEGMENTS}
         report %fs:0\n report %gs:0""", 0, 0, 0, 0, 4711, 4712),
    _two("one-of-four", "load_segments: the others are as they were",
         f"""{_LDT} mov $0xf, %eax\n mov %eax, %es\n mov $FLAT_USER_SS64, %eax\n mov %eax, %ds
         {_NO_LDT}{_SWITCH}
         report failsafe_ds\n report failsafe_es\n report failsafe_fs
         {_REPORT_SEGMENTS}""", _SS, 0xF, 0, _SS, 0, 0, 0),
    _two("once", "the selectors are null: the next switch finds nothing wrong",
         f"{_LDT} mov $0xf, %eax\n mov %eax, %fs\n {_NO_LDT}{_SWITCH}{_YIELD}{_YIELD}"
         "report trap_count", 1),
    _two("still-there", "what can be loaded stays, and nobody is told",
         f"{_LDT} mov $0xf, %eax\n mov %eax, %es\n {_YIELD}{_YIELD}"
         " mov %es, %eax\n report %rax\n report trap_count", 0xF, 0),
    _two("shorter-ldt", "an LDT that ends before the descriptor now",
         f"{_LDT} mov $0xf, %eax\n mov %eax, %fs\n mmuext MMUEXT_SET_LDT, ${_LDT_PAGE}, $1\n"
         f" {_SWITCH} report trap_vector\n report failsafe_fs", _FAILSAFE, 0xF),
    _two("not-present", "a descriptor that is not present any more (update_descriptor)",
         f"""{_LDT} mov $0xf, %eax\n mov %eax, %gs
         maddr_of ${_LDT_PAGE}+8, %rbx\n movabs $0x00cf73000000ffff, %rbp
         result_of update_descriptor, %rbx, %rbp
         {_SWITCH} report trap_vector\n report failsafe_gs""", 0, _FAILSAFE, 0xF),
    _two("code-not-readable", "a descriptor that has become code which cannot be read",
         f"""{_LDT} mov $0xf, %eax\n mov %eax, %ds
         maddr_of ${_LDT_PAGE}+8, %rbx\n movabs $0x00cff9000000ffff, %rbp
         result_of update_descriptor, %rbx, %rbp
         {_SWITCH} report trap_vector\n report failsafe_ds""", 0, _FAILSAFE, 0xF),
    _two("masks-events", "VGCF_failsafe_disables_events: sets the mask; the frame has the old",
         f"""result_of callback_op, $CALLBACKOP_register, $@arg
         events_on\n {_LDT} mov $0xf, %eax\n mov %eax, %fs\n {_NO_LDT}{_SWITCH}
         movzbl shared_info+VCPU_MASK, %eax\n report %rax
         movzbl trap_cs+4, %eax\n report %rax
         mov trap_flags, %eax\n and $0x200, %eax\n report %rax""", 0, 1, 0, 0x200,
         data=FLAG + _REGISTER),
    _two("does-not-mask-events", "without the flag the mask is as before",
         f"""events_on\n {_LDT} mov $0xf, %eax\n mov %eax, %fs\n {_NO_LDT}{_SWITCH}
         movzbl shared_info+VCPU_MASK, %eax\n report %rax""", 0),
    _two("from-user-mode", "load_segments: to the kernel, on the stack of stack_switch",
         f"""{_LDT}
         expecting @after
         to_user @user
@after:  report trap_vector
         report failsafe_ds
         movzwl trap_cs, %eax\n report %rax
         movzwl trap_ss, %eax\n report %rax
         mov trap_sp, %rax\n sub $user_stack_top, %rax\n report %rax
         mov $user_entry_stack_top, %rax\n sub trap_stack, %rax\n report %rax
         jmp @end
@second: mov user_data, %rax
         cmp $0xf, %rax
         jne 1f
         maddr_of ${_LDT_PAGE}+8, %rbx
         hypercall update_descriptor, %rbx, $0
1:       hypercall sched_op, $SCHEDOP_yield, $0
         jmp @second
@end:""", _FAILSAFE, 0xF, _USER_CS, _SS, 0, 0,
         user="""@user: mov $0xf, %eax
         mov %eax, %ds
         mov %rax, user_data
1:       pause
         jmp 1b"""),
    Case("failsafe/first-run", "VCPUOP_initialise: the selectors of the context are loaded first",
         f"""{CONTEXT}
         movw $0x7b, pages+CTX_ES
         movw $FLAT_USER_SS64, pages+CTX_DS
         movq $@failsafe, pages+CTX_FAILSAFE
         hypercall vcpu_op, $VCPUOP_initialise, $1, $pages
         hypercall vcpu_op, $VCPUOP_up, $1, $0
1:       hypercall sched_op, $SCHEDOP_yield, $0
         cmpq $0, @flag\n je 1b
         report @flag\n report @ds\n report @es
         mov $@second, %rax\n sub @rip, %rax\n report %rax
         jmp @end
@failsafe: mov 16(%rsp), %rax\n mov %rax, @ds
         mov 24(%rsp), %rax\n mov %rax, @es
         mov 48(%rsp), %rax\n mov %rax, @rip
         movq $1, @flag
         jmp 2f
@second: movq $2, @flag
2:       hypercall sched_op, $SCHEDOP_block, $0
         jmp 2b
@end:""", (1, _SS, 0x7B, 0), f"{FLAG}@ds: .quad 0\n@es: .quad 0\n@rip: .quad 0\n", vcpus=2),
    Case("failsafe/good-first-run", "VCPUOP_initialise: good selectors are those of the vCPU",
         f"""{CONTEXT}
         movw $FLAT_USER_SS64, pages+CTX_DS
         hypercall vcpu_op, $VCPUOP_initialise, $1, $pages
         hypercall vcpu_op, $VCPUOP_up, $1, $0
1:       hypercall sched_op, $SCHEDOP_yield, $0
         cmpq $0, @flag\n je 1b
         report @flag
         jmp @end
@second: mov %ds, %eax\n movzwl %ax, %eax\n mov %rax, @flag
2:       hypercall sched_op, $SCHEDOP_block, $0
         jmp 2b
@end:""", (_SS,), FLAG, vcpus=2),
    Case("failsafe/ldt-of-the-context", "VCPUOP_initialise: selectors of the context's own LDT",
         f"""{CONTEXT}
         movabs  $0x00cff3000000ffff, %rax
         mov     %rax, {_LDT_PAGE}+8
         remap   ${_LDT_PAGE}, PAGE_RO
         movq ${_LDT_PAGE}, pages+CTX_LDT_BASE
         movq $2, pages+CTX_LDT_ENTS
         movw $0xf, pages+CTX_DS
         result_of vcpu_op, $VCPUOP_initialise, $1, $pages
         hypercall vcpu_op, $VCPUOP_up, $1, $0
1:       hypercall sched_op, $SCHEDOP_yield, $0
         cmpq $0, @flag\n je 1b
         report @flag
         jmp @end
@second: mov %ds, %eax\n movzwl %ax, %eax\n mov %rax, @flag
2:       hypercall sched_op, $SCHEDOP_block, $0
         jmp 2b
@end:""", (0, 0xF), FLAG, vcpus=2),
    Case("failsafe/no-stack", "load_segments: a stack that cannot be written crashes the domain",
         f"{_START_SECOND}{_LDT} mov $0xf, %eax\n mov %eax, %fs\n {_NO_LDT}"
         f" mov $NOT_MAPPED, %rsp\n {_YIELD}{_IDLE}", (), FLAG, crash="double fault", vcpus=2),
]  # fmt: skip
