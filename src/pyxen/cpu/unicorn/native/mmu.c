/* Page-table hypercalls: as pyxen/hypervisor/hypercall/page_tables.py. */
#include "hot.h"

#define DOMID_SELF 0x7ff0u
#define MAX_NATIVE_BATCH 64
#define MMU_UPDATE_PREEMPTED (1ull << 31)
#define UVMF_ALL 4

enum {
    MMU_MACHPHYS_UPDATE = 1,
    MMU_PT_UPDATE_PRESERVE_AD = 2,
    MMU_PT_UPDATE_NO_TRANSLATE = 3,
};
enum { UVMF_TLB_FLUSH = 1, UVMF_INVLPG = 2, UVMF_FLUSHTYPE_MASK = 3 };
enum {
    MMUEXT_PIN_L1_TABLE = 0,
    MMUEXT_PIN_L4_TABLE = 3,
    MMUEXT_UNPIN_TABLE = 4,
    MMUEXT_NEW_BASEPTR = 5,
    MMUEXT_TLB_FLUSH_LOCAL = 6,
    MMUEXT_INVLPG_LOCAL = 7,
    MMUEXT_TLB_FLUSH_MULTI = 8,
    MMUEXT_INVLPG_MULTI = 9,
    MMUEXT_TLB_FLUSH_ALL = 10,
    MMUEXT_INVLPG_ALL = 11,
    MMUEXT_NEW_USER_BASEPTR = 15,
};

struct mmu_update_request {
    u64 ptr;
    u64 val;
};

struct mmuext_op_request {
    u64 cmd; /* the upper half is padding */
    u64 arg1;
    u64 arg2;
};

/* everywhere: on the other vCPUs, too, which have a TLB of their own (vcpu_tlb.c). */
static void flush_page(struct hot *h, u64 vaddr, bool everywhere)
{
    h->tlb_flush_page(h->cpu, vaddr);
    h->flushes += everywhere;
    count(h, DOM_COUNT_FLUSH_PAGE);
}

/* Copy the guest's records once. False: too many, not readable, or across pages in one record. */
static bool read_batch(const struct hot *h, u64 vaddr, u64 n, u64 size, void *out)
{
    if (n > MAX_NATIVE_BATCH)
        return false;
    for (u64 i = 0; i < n; i++) {
        const void *record = guest_range(h, vaddr + i * size, size, false);
        if (!record)
            return false;
        memcpy((u8 *)out + i * size, record, size);
    }
    return true;
}

/* The first `done` of n records are carried out; the rest becomes a shorter hypercall, as Xen itself
 * continues a preempted one.
 */
static enum outcome leave_rest(u64 *args, u64 done, u64 n, u64 size)
{
    if (!done)
        return SLOW;
    args[0] += done * size;
    args[1] = (n - done) | MMU_UPDATE_PREEMPTED;
    return REST;
}

enum outcome mmu_update(struct hot *h, u64 *args, s64 *result)
{
    struct mmu_update_request batch[MAX_NATIVE_BATCH];
    u64 n = args[1] & 0xffffffff; /* with MMU_UPDATE_PREEMPTED it is too many */
    if (args[2] || args[3] != DOMID_SELF || !read_batch(h, args[0], n, sizeof *batch, batch))
        return SLOW;
    *result = 0;
    for (u64 i = 0; i < n && !*result; i++) {
        u64 command = batch[i].ptr & 7;
        if (command > MMU_PT_UPDATE_NO_TRANSLATE) {
            *result = -XEN_ENOSYS;
            break;
        }
        if (command == MMU_MACHPHYS_UPDATE || h->domain[DOM_DYING] ||
            update_entry(h, batch[i].ptr & ~7ull, batch[i].val,
                         command == MMU_PT_UPDATE_PRESERVE_AD, result) == SLOW)
            return leave_rest(args, i, n, sizeof *batch);
        if (!*result)
            count(h, DOM_COUNT_MMU_ENTRY);
    }
    return DONE;
}

enum outcome update_va_mapping(struct hot *h, const u64 *args, s64 *result)
{
    u64 vaddr = args[0], value = args[1], maddr;
    u64 flush = args[2] & UVMF_FLUSHTYPE_MASK, which = args[2] & ~(u64)UVMF_FLUSHTYPE_MASK;
    if (h->domain[DOM_DYING] || !is_guest_vaddr(vaddr, 1) || !entry_maddr(h, vaddr, &maddr) ||
        (which && which != UVMF_ALL))
        return SLOW;
    *result = -XEN_EINVAL;
    if (!is_domains_frame(h, maddr >> 12) || level_of(h, maddr >> 12) != 1)
        return DONE;
    if (modify_entry(h, maddr, 1, value, false, result) == SLOW)
        return SLOW;
    if (*result)
        return DONE;
    count(h, DOM_COUNT_MMU_ENTRY);
    if (flush == UVMF_TLB_FLUSH)
        flush_all(h, which);
    else if (flush == UVMF_INVLPG)
        flush_page(h, vaddr, which);
    return DONE;
}

static enum outcome new_baseptr(struct hot *h, u64 l4, s64 *result)
{
    u64 old = h->vcpu[PV_CR3] >> 12;
    *result = -XEN_EINVAL;
    if (!l4)
        return DONE;
    if (h->vcpu[PV_LDT_ENTRIES] ||
        replace_base(h, &h->vcpu[PV_CR3], l4, result) == SLOW)
        return SLOW;
    if (*result)
        return DONE;
    set_xen_slots(h, l4);
    h->env[Q_CR3] = l4 << 12;
    h->tlb_flush(h->cpu);
    h->domain[DOM_FLUSH_EPOCH] += h->domain[DOM_VCPUS] == 1;
    count(h, DOM_COUNT_NEW_BASEPTR);
    if (old && old != l4)
        put_base(h, old);
    return DONE;
}

static enum outcome new_user_baseptr(struct hot *h, u64 l4, s64 *result)
{
    u64 old = h->vcpu[PV_USER_CR3] >> 12;
    if (replace_base(h, &h->vcpu[PV_USER_CR3], l4, result) == SLOW)
        return SLOW;
    if (!*result && old && old != l4)
        put_base(h, old);
    return DONE;
}

static enum outcome extended(struct hot *h, const struct mmuext_op_request *op, s64 *result)
{
    u32 command = (u32)op->cmd;
    *result = 0;
    switch (command) {
    case MMUEXT_PIN_L1_TABLE ... MMUEXT_PIN_L4_TABLE:
        return pin_table(h, op->arg1, command + 1, result);
    case MMUEXT_UNPIN_TABLE:
        *result = unpin_table(h, op->arg1);
        return DONE;
    case MMUEXT_NEW_BASEPTR:
        return new_baseptr(h, op->arg1, result);
    case MMUEXT_NEW_USER_BASEPTR:
        return new_user_baseptr(h, op->arg1, result);
    case MMUEXT_TLB_FLUSH_MULTI:
    case MMUEXT_INVLPG_MULTI:
        if (!guest_range(h, op->arg2, 8, false))
            return SLOW;
        break;
    case MMUEXT_TLB_FLUSH_LOCAL:
    case MMUEXT_TLB_FLUSH_ALL:
    case MMUEXT_INVLPG_LOCAL:
    case MMUEXT_INVLPG_ALL:
        break;
    default:
        return SLOW;
    }
    if (command == MMUEXT_TLB_FLUSH_LOCAL || command == MMUEXT_TLB_FLUSH_MULTI ||
        command == MMUEXT_TLB_FLUSH_ALL)
        flush_all(h, command != MMUEXT_TLB_FLUSH_LOCAL);
    else if (is_guest_vaddr(op->arg1, 1))
        flush_page(h, op->arg1, command != MMUEXT_INVLPG_LOCAL);
    return DONE;
}

enum outcome mmuext_op(struct hot *h, u64 *args, s64 *result)
{
    struct mmuext_op_request batch[MAX_NATIVE_BATCH];
    u64 n = args[1] & 0xffffffff; /* with MMU_UPDATE_PREEMPTED it is too many */
    if (args[2] || args[3] != DOMID_SELF || !read_batch(h, args[0], n, sizeof *batch, batch))
        return SLOW;
    *result = 0;
    for (u64 i = 0; i < n && !*result; i++)
        if (h->domain[DOM_DYING] || extended(h, &batch[i], result) == SLOW)
            return leave_rest(args, i, n, sizeof *batch);
    return DONE;
}
