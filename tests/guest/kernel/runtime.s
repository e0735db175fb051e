# The kernel around the cases: its start, its entry points, its data. See macros.s for its words.

.section .text
.globl start
start:
    mov     $stack_top, %rsp
    mov     %rsi, start_info
    mov     START_MFN_LIST(%rsi), %rax
    mov     %rax, p2m
    mov     START_PT_BASE(%rsi), %rax
    mov     %rax, l4
    lea     3*4096(%rax), %rax
    mov     %rax, first_l1
    mov     START_CONSOLE_EVTCHN(%rsi), %eax
    mov     %eax, console_port
    # The console ring is in the initial mapping, at its pfn: the M2P has it.
    mov     START_CONSOLE_MFN(%rsi), %rax
    movabs  $MACH2PHYS_VIRT_START, %rcx
    mov     (%rcx,%rax,8), %rax
    shl     $12, %rax
    add     $VIRT_BASE, %rax
    mov     %rax, console_ring
    # shared_info, where Linux has it too: over a page of the kernel's own
    mov     START_SHARED_INFO(%rsi), %rsi
    or      $PAGE_RW, %rsi
    hypercall update_va_mapping, $shared_info, %rsi, $UVMF_INVLPG
    hypercall set_trap_table, $trap_table
    hypercall set_callbacks, $event_entry, $failsafe_entry, $syscall_entry
    hypercall stack_switch, $FLAT_KERNEL_SS, $user_entry_stack_top
    # The user's pages, and a top-level table for user mode (the kernel's)
    remap   $user_text, PAGE_USER_RW
    remap   $user_text+4096, PAGE_USER_RW
    remap   $user_data, PAGE_USER_RW
    remap   $user_data+4096, PAGE_USER_RW
    mfn_of  l4, %rbx
    mmuext  MMUEXT_NEW_USER_BASEPTR, %rbx
    xor     %eax, %eax
    jmp     *case_entry

# Where a case ends that falls off its end.
case_end:
    shutdown SHUTDOWN_poweroff
    ud2

# An entry for each vector; all of them write down what they see and go where the case wants.
.altmacro
.macro vector_entry number
    .balign 32
    movq    $\number, trap_vector
    .if (\number==8)||((\number>=10)&&(\number<=14))||(\number==17)
    jmp     trap_with_error
    .else
    jmp     trap_without_error
    .endif
.endm
.balign 32
vector_entries:
.set n, 0
.rept 256
    vector_entry %n
    .set n, n+1
.endr
.noaltmacro

trap_with_error:
    pop     %rcx
    pop     %r11
    popq    trap_error
    jmp     1f
trap_without_error:
    pop     %rcx
    pop     %r11
    movq    $-1, trap_error
1:  popq    trap_rip
    popq    trap_cs
    popq    trap_flags
    popq    trap_sp
    popq    trap_ss
    mov     %rsp, trap_stack
    incq    trap_count
    push    %rax
    mov     shared_info+VCPU_CR2, %rax
    mov     %rax, trap_cr2
    movzbl  shared_info+VCPU_MASK, %eax
    mov     %rax, trap_mask
    pushf
    pop     %rax
    mov     %rax, handler_flags
    pop     %rax
resume_case:
    cmpq    $0, resume
    je      unexpected
    mov     resume_sp, %rsp
    pushq   resume
    movq    $0, resume
    ret
unexpected:
    shutdown SHUTDOWN_crash
    ud2

# From the user's SYSCALL: RCX and R11 of the frame are the user's RIP and RFLAGS.
syscall_entry:
    movq    $0x100, trap_vector
    mov     (%rsp), %rcx
    mov     %rcx, syscall_rcx
    mov     8(%rsp), %r11
    mov     %r11, syscall_r11
    mov     %rax, syscall_rax
    jmp     trap_without_error

# Data segments could not be loaded: as a trap, with the four selectors first.
failsafe_entry:
    movq    $0x101, trap_vector
    movq    $-1, trap_error
    pop     %rcx
    pop     %r11
    popq    failsafe_ds
    popq    failsafe_es
    popq    failsafe_fs
    popq    failsafe_gs
    popq    trap_rip
    popq    trap_cs
    popq    trap_flags
    popq    trap_sp
    popq    trap_ss
    mov     %rsp, trap_stack
    incq    trap_count
    jmp     resume_case

# Events: write down, take them, go on.
event_entry:
    incq    event_count
    pop     %rcx
    pop     %r11
    push    %rax
    mov     8(%rsp), %rax
    mov     %rax, event_rip
    mov     16(%rsp), %rax
    mov     %rax, event_cs
    mov     24(%rsp), %rax
    mov     %rax, event_flags
    movzbl  shared_info+VCPU_MASK, %eax
    mov     %rax, event_mask
    movb    $0, shared_info
    xor     %eax, %eax
    xchg    %rax, shared_info+VCPU_PENDING_SEL
    mov     %rax, event_sel
    xor     %eax, %eax
    xchg    %rax, shared_info+EVTCHN_PENDING
    mov     %rax, event_ports
    pop     %rax
    pushq   $0
    push    %rcx
    push    %r11
    push    %rax
    iret

.section .data
.balign 8
.globl case_entry, results, result_next
case_entry:     .quad 0
result_next:    .quad results
resume:         .quad 0
resume_sp:      .quad 0
start_info:     .quad 0
p2m:            .quad 0
l4:             .quad 0
first_l1:       .quad 0
console_ring:   .quad 0
trap_vector:    .quad -1
trap_error:     .quad -1
trap_rip:       .quad 0
trap_cs:        .quad 0
trap_flags:     .quad 0
trap_sp:        .quad 0
trap_ss:        .quad 0
trap_cr2:       .quad 0
trap_mask:      .quad 0
trap_stack:     .quad 0
trap_count:     .quad 0
handler_flags:  .quad 0
failsafe_ds:    .quad 0
failsafe_es:    .quad 0
failsafe_fs:    .quad 0
failsafe_gs:    .quad 0
syscall_rax:    .quad 0
syscall_rcx:    .quad 0
syscall_r11:    .quad 0
event_count:    .quad 0
event_rip:      .quad 0
event_cs:       .quad 0
event_flags:    .quad 0
event_mask:     .quad 0
event_sel:      .quad 0
event_ports:    .quad 0
request:        .quad 0, 0
operation:      .quad 0, 0, 0
console_port:   .long 0
request_done:   .long 0
operation_done: .long 0
shutdown_argument: .long 0, 0, 0, 0, 0, 0
.balign 16
trap_table:
.set n, 0
.rept 256
    .byte   n
    .byte   0 + 3*((n==3)||(n==4)||(n==0x80)) + 4*(n==14)
    .word   FLAT_KERNEL_CS
    .long   0
    .quad   vector_entries + 32*n
    .set n, n+1
.endr
    .quad   0, 0
results:        .fill 64, 8, 0

.section .bss
.balign 4096
shared_info:    .skip 4096
# Pages that cases may do anything with
.globl pages
pages:          .skip 40*4096
stack:          .skip 4*4096
stack_top:
user_entry_stack: .skip 2*4096
user_entry_stack_top:
