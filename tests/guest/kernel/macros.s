# The words that cases are written in. AT&T syntax; constants have the names of Xen's headers.
# Scratch registers of the macros: r13, r14. Everything else is the case's.

# A hypercall: RAX is the result; RCX and R11 are lost.
.macro hypercall name, a, b, c, d, e
    .ifnb \e
    mov     \e, %r8
    .endif
    .ifnb \d
    mov     \d, %r10
    .endif
    .ifnb \c
    mov     \c, %rdx
    .endif
    .ifnb \b
    mov     \b, %rsi
    .endif
    .ifnb \a
    mov     \a, %rdi
    .endif
    mov     $__HYPERVISOR_\name, %eax
    syscall
.endm

# One more word for the test to look at.
.macro report value:vararg
    mov     \value, %r14
    mov     result_next, %r13
    mov     %r14, (%r13)
    addq    $8, result_next
.endm

.macro result_of name, a, b, c, d, e
    hypercall \name, \a, \b, \c, \d, \e
    report  %rax
.endm

# The next trap (or system call, or failsafe callback) goes on at `target`, in kernel mode and with
# this stack. Without it a trap ends the test as SHUTDOWN_crash.
.macro expecting target
    movq    $\target, resume
    mov     %rsp, resume_sp
.endm

# Vector and error code (-1: none) of the last trap.
.macro report_trap
    report  trap_vector
    report  trap_error
.endm

# register = the machine frame of the page at a kernel address, by the guest's own P2M list
.macro mfn_of address, register
    mov     \address, \register
    sub     $VIRT_BASE, \register
    shr     $12, \register
    mov     p2m, %r13
    mov     (%r13,\register,8), \register
.endm

# register = the machine address behind a kernel address
.macro maddr_of address, register
    mfn_of  \address, \register
    shl     $12, \register
    mov     \address, %r14
    and     $0xfff, %r14
    or      %r14, \register
.endm

# register = the kernel address (read-only) of the L1 entry that maps a kernel address
.macro pte_of address, register
    mov     \address, \register
    sub     $VIRT_BASE, \register
    shr     $12, \register
    shl     $3, \register
    add     first_l1, \register
.endm

# register = the machine address of that entry
.macro pte_maddr_of address, register
    pte_of  \address, \register
    maddr_of \register, %r12
    mov     %r12, \register
.endm

# register = a page-table entry for the page at a kernel address
.macro entry_for address, flags, register
    mfn_of  \address, \register
    shl     $12, \register
    or      $\flags, \register
.endm

# Map a kernel page anew: update_va_mapping of its own frame
.macro remap address, flags
    entry_for \address, \flags, %rsi
    mov     \address, %rdi
    mov     $UVMF_INVLPG, %edx
    mov     $__HYPERVISOR_update_va_mapping, %eax
    syscall
.endm

# One request of mmu_update (ptr in a register, val in another): the result
.macro mmu_update ptr, val
    mov     \val, %r14
    mov     %r14, request+8
    mov     \ptr, %r14
    mov     %r14, request
    hypercall mmu_update, $request, $1, $request_done, $DOMID_SELF
.endm

# One operation of mmuext_op
.macro mmuext cmd, a=$0, b=$0
    mov     \a, %r14
    mov     %r14, operation+8
    mov     \b, %r14
    mov     %r14, operation+16
    movl    $\cmd, operation
    hypercall mmuext_op, $operation, $1, $operation_done, $DOMID_SELF
.endm

# The frame of HYPERVISOR_iret, for general use
.macro push_iret rip, cs, rflags, rsp, ss, flags=$0
    mov     \ss, %r14
    push    %r14
    mov     \rsp, %r14
    push    %r14
    mov     \rflags, %r14
    push    %r14
    mov     \cs, %r14
    push    %r14
    mov     \rip, %r14
    push    %r14
    mov     \flags, %r14
    push    %r14
    push    %rcx
    push    %r11
    push    %rax
.endm

.macro iret
    mov     $__HYPERVISOR_iret, %eax
    syscall
.endm

# Go on at `target` in user mode
.macro to_user target
    push_iret $\target, $FLAT_USER_CS64, $0x202, $user_stack_top, $FLAT_USER_SS64
    iret
.endm

.macro shutdown reason
    movl    $\reason, shutdown_argument
    hypercall sched_op, $SCHEDOP_shutdown, $shutdown_argument
.endm

# Text for the console ring, and the event that announces it
.macro print text, length
    mov     console_ring, %rdi
    mov     $\text, %rsi
    mov     $\length, %ecx
    lea     CONSOLE_OUT(%rdi), %rdi
    cld
    rep movsb
    mov     console_ring, %rdi
    addl    $\length, CONSOLE_OUT_PROD(%rdi)
    hypercall event_channel_op, $EVTCHNOP_send, $console_port
.endm

# Begin in the way of a guest that handles events: clear the mask
.macro events_on
    movb    $0, shared_info+VCPU_MASK
.endm
