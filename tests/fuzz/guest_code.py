"""The guest's side: a loop over records of 64 bytes, each an operation with its registers.

    0 address of the stub   8 rax   16 rdi   24 rsi   32 rdx   40 r10   48 r8   56 result

Whatever goes wrong comes back to the loop: all traps and callbacks lead to it.
"""

from __future__ import annotations

from ..guest.case import Case

RECORD_BYTES = 64
RECORDS_PAGE, RECORD_PAGES = 24, 16
ARGUMENTS_PAGE, ARGUMENT_PAGES = 8, 2
CODE_PAGE, GRANT_PAGE, TABLE_PAGE = 14, 15, 16
FREE_PAGES = 8
LAST_PAGE = 24

_STUBS = {
    "hypercall": "syscall",
    "store": "mov %rax, (%rdi)",
    "store32": "mov %eax, (%rdi)",
    "store8": "mov %al, (%rdi)",
    "xchg": "xchg %rax, (%rdi)",
    "cmpxchg": "lock cmpxchg %rdx, (%rdi)",
    "or": "lock or %rax, (%rdi)",
    "and": "lock and %rax, (%rdi)",
    "btr": "lock btr %rdx, (%rdi)",
    "bts": "lock bts %rdx, (%rdi)",
    "stos": "mov %rdx, %rcx\n and $7, %ecx\n cld\n rep stosq",
    "load": "mov (%rdi), %rax",
    "jump": "jmp *%rdi",
    "int3": "int3",
    "int80": "int $0x80",
    "int20": "int $0x20",
    "segment": "mov %eax, %fs\n mov %edi, %gs\n mov %esi, %ds\n mov %edx, %es",
    "stack": "mov %eax, %ss",
    "rdmsr": "mov %edi, %ecx\n rdmsr",
    "wrmsr": "mov %edi, %ecx\n wrmsr",
    "cr0": "mov %rax, %cr0",
    "cr2": "mov %rax, %cr2",
    "cr3": "mov %rax, %cr3",
    "cr4": "mov %rax, %cr4",
    "dr0": "mov %rax, %dr0",
    "dr7": "mov %rax, %dr7",
    "cpuid": ".byte 0x0f, 0x0b, 0x78, 0x65, 0x6e\n cpuid",
    "flags": "push %rax\n popf",
    "far": "push %rsi\n push %rdi\n lretq",
    "iret": "push %r8\n push %r10\n push %rdx\n push %rsi\n push %rdi\n push %rax\n"
    " push %rax\n push %rax\n push %rax\n mov $__HYPERVISOR_iret, %eax\n syscall",
    "iretq": "push %r8\n push %r10\n push %rdx\n push %rsi\n push %rdi\n iretq",
    "events": "movb $0, shared_info+VCPU_MASK",
    "stack-moved": "mov %rdi, %rsp\n ud2",
}
STUBS = tuple(_STUBS)
USER_STUBS = ("syscall", "int3", "store", "load", "ud2", "int80", "xen")
_USER = {
    "syscall": "syscall",
    "int3": "int3",
    "store": "mov %rax, (%rdi)\n syscall",
    "load": "mov (%rdi), %rax\n syscall",
    "ud2": "ud2",
    "int80": "int $0x80",
    "xen": "movabs $HYPERVISOR_VIRT_START, %rdi\n mov %rax, (%rdi)",
}


def label(name: str) -> str:
    """The symbol of a stub."""
    return f"stub_{name.replace('-', '_')}"


_BODY = "\n".join(
    f".globl {label(name)}\n{label(name)}:\n{code}\n jmp fuzz_next" for name, code in _STUBS.items()
)
_USER_BODY = "\n".join(
    f".globl user_{name}\nuser_{name}:\n{code}\n ud2" for name, code in _USER.items()
)

CODE = f"""
    hypercall set_trap_table, $fuzz_traps
    hypercall set_callbacks, $fuzz_next, $fuzz_next, $fuzz_next
    hypercall grant_table_op, $GNTTABOP_setup_table, $@setup, $1
    mov     @frame, %rsi
    shl     $12, %rsi
    or      $PAGE_RW, %rsi
    hypercall update_va_mapping, $pages+{GRANT_PAGE}*4096, %rsi, $UVMF_INVLPG
.globl fuzz_end
fuzz_end:
    ud2
.globl fuzz_next
fuzz_next:
    mov     $stack_top, %rsp
    cld
    mov     fuzz_cursor, %rbx
    cmp     fuzz_limit, %rbx
    jae     fuzz_end
    addq    $64, fuzz_cursor
    mov     8(%rbx), %rax
    mov     16(%rbx), %rdi
    mov     24(%rbx), %rsi
    mov     32(%rbx), %rdx
    mov     40(%rbx), %r10
    mov     48(%rbx), %r8
    jmp     *(%rbx)
{_BODY}
"""
_DATA = """
.globl fuzz_cursor, fuzz_limit, fuzz_traps
fuzz_cursor:    .quad 0
fuzz_limit:     .quad 0
@setup:         .word DOMID_SELF, 0
                .long 1, 0, 0
                .quad @frame
@frame:         .quad 0
.balign 16
fuzz_traps:
.set n, 0
.rept 256
    .byte   n, 3*((n==3)||(n==4)||(n==0x80))
    .word   FLAT_KERNEL_CS
    .long   0
    .quad   fuzz_next
    .set n, n+1
.endr
    .quad   0, 0
"""
CASE = Case("fuzz", "", CODE, data=_DATA, user=_USER_BODY)
