/* Dispatch, the ring of recent hypercalls and their counters, and the hypercalls that only set a word. */
#include "hot.h"

enum {
    NR_mmu_update = 1,
    NR_stack_switch = 3,
    NR_multicall = 13,
    NR_update_va_mapping = 14,
    NR_iret = 23,
    NR_set_segment_base = 25,
    NR_mmuext_op = 26,
};
enum { SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL, SEGBASE_GS_USER_SEL };
enum { ARGUMENTS = 5, MULTICALL_ENTRY_BYTES = 64, MAX_NATIVE_MULTICALL = 256 };

void record_hypercall(struct hot *h, u64 number, const u64 *args, s64 result)
{
    u64 slot = h->domain[DOM_HYPERCALLS]++ % RING_SLOTS;
    u64 *record = h->domain + DOM_RING + slot * RING_SLOT_WORDS;
    record[0] = number;
    for (int i = 0; i < 6; i++)
        record[1 + i] = args && i < ARGUMENTS ? args[i] : 0;
    record[7] = (u64)result;
    u64 counter = number < NUMBERS ? number : NUMBERS - 1;
    h->domain[DOM_CALLS + counter]++;
    if (result < 0 && result >= -MAX_ERRNO)
        h->domain[DOM_FAILURES + counter]++;
}

static bool is_canonical(u64 vaddr)
{
    return (u64)((s64)(vaddr << 16) >> 16) == vaddr;
}

static enum outcome set_segment_base(struct hot *h, u64 which, u64 base, s64 *result)
{
    if (which == SEGBASE_GS_USER_SEL) {
        u32 *segment = env32(h) + D_GS;
        if (base & 0xffff & ~3ull)
            return SLOW;
        h->vcpu[PV_GS_BASE_USER] = 0;
        segment[0] = base & 3;
        segment[D_SEGMENT_LIMIT] = segment[D_SEGMENT_FLAGS] = 0;
    } else if (!is_canonical(base)) {
        return SLOW;
    } else if (which == SEGBASE_FS) {
        h->env[Q_FS_BASE] = base;
    } else if (which == SEGBASE_GS_USER) {
        h->vcpu[PV_GS_BASE_USER] = base;
    } else if (which == SEGBASE_GS_KERNEL) {
        h->env[Q_GS_BASE] = base;
    } else {
        return SLOW;
    }
    *result = 0;
    return DONE;
}

/* REST: `args` say what is left of it. */
static enum outcome one_call(struct hot *h, u64 number, u64 *args)
{
    enum outcome outcome = SLOW;
    s64 result = 0;
    begin_page_types();
    switch (number) {
    case NR_mmu_update:
        outcome = mmu_update(h, args, &result);
        break;
    case NR_stack_switch:
        h->vcpu[PV_KERNEL_SS] = args[0] & 0xffff;
        h->vcpu[PV_KERNEL_SP] = args[1];
        outcome = DONE;
        break;
    case NR_update_va_mapping:
        outcome = update_va_mapping(h, args, &result);
        break;
    case NR_set_segment_base:
        outcome = set_segment_base(h, args[0], args[1], &result);
        break;
    case NR_mmuext_op:
        outcome = mmuext_op(h, args, &result);
        break;
    }
    if (outcome == DONE) {
        record_hypercall(h, number, args, result);
        h->env[RAX] = (u64)result;
    }
    return outcome;
}

/* Calls from the front of the list. At the first that is not ours, or after many, the rest of the list goes to the
 * hypervisor as a shorter multicall: argument registers are the callee's, and Xen itself continues
 * preempted multicalls in this way.
 */
static bool multicall(struct hot *h, u64 calls, u64 n)
{
    u64 *env = h->env;
    u64 args[ARGUMENTS] = {env[RDI], env[RSI], env[RDX], env[R10], env[R8]};
    u64 rax = env[RAX];
    n &= 0xffffffff;
    for (u64 i = 0; i < n; i++) {
        u64 at = calls + i * MULTICALL_ENTRY_BYTES;
        u8 *entry = guest_range(h, at, MULTICALL_ENTRY_BYTES, true);
        u64 words[2 + ARGUMENTS];
        enum outcome outcome = SLOW;
        if (entry && i < MAX_NATIVE_MULTICALL) {
            memcpy(words, entry, sizeof words);
            outcome = one_call(h, words[0], words + 2);
        }
        if (outcome != DONE) {
            entry = guest_range(h, at, MULTICALL_ENTRY_BYTES, true);
            if (outcome == REST && entry)
                memcpy(entry + 16, words + 2, 16);
            env[RAX] = rax;
            env[RDI] = at;
            env[RSI] = n - i;
            return false;
        }
        /* The call may have changed what is mapped there. */
        entry = guest_range(h, at, MULTICALL_ENTRY_BYTES, true);
        if (entry)
            store64(entry + 8, env[RAX]);
    }
    record_hypercall(h, NR_multicall, args, 0);
    env[RAX] = 0;
    return true;
}

bool hypercall(struct hot *h)
{
    u64 *env = h->env;
    u64 number = env[RAX];
    if (number == NR_iret) {
        if (!iret(h))
            return false;
        record_hypercall(h, NR_iret, NULL, 0);
    } else if (number == NR_multicall) {
        if (!multicall(h, env[RDI], env[RSI]))
            return false;
        count(h, DOM_COUNT_HYPERCALL);
    } else {
        u64 args[ARGUMENTS] = {env[RDI], env[RSI], env[RDX], env[R10], env[R8]};
        enum outcome outcome = one_call(h, number, args);
        if (outcome == REST) {
            env[RDI] = args[0];
            env[RSI] = args[1];
        }
        if (outcome != DONE)
            return false;
        count(h, DOM_COUNT_HYPERCALL);
    }
    return true;
}
