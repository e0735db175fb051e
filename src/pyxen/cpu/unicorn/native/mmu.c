/* Page-table hypercalls: as pyxen/hypervisor/hypercall/page_tables.py. */
#include "hot.h"

#define DOMID_SELF 0x7ff0u
#define MAX_NATIVE_BATCH 64
#define PTE_ACCESSED_DIRTY 0x60ull
#define M2P_SLOT 256
#define GDT_SLOT 260

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
static void flush_all(struct hot *h, bool everywhere)
{
    h->tlb_flush(h->cpu);
    h->flushes += everywhere;
    count(h, DOM_COUNT_FLUSH_ALL);
}

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

static bool is_own(const struct hot *h, u64 mfn)
{
    return is_guest_frame(h, mfn) && is_domains_frame(h, mfn);
}

static int update(struct hot *h, const struct mmu_update_request *r)
{
    u64 maddr = r->ptr & ~7ull;
    if ((r->ptr & 7) > MMU_PT_UPDATE_NO_TRANSLATE)
        return -XEN_ENOSYS;
    if (!is_own(h, maddr >> 12))
        return -XEN_EINVAL;
    int error = check_entry(h, r->val, maddr);
    if (error)
        return error;
    /* COMMIT */
    u64 *entry = maddr_to_word(h, maddr);
    u64 value = r->val;
    if ((r->ptr & 7) == MMU_PT_UPDATE_PRESERVE_AD)
        value |= *entry & PTE_ACCESSED_DIRTY;
    *entry = value;
    count(h, DOM_COUNT_MMU_ENTRY);
    return 0;
}

enum outcome mmu_update(struct hot *h, const u64 *args, s64 *result)
{
    struct mmu_update_request batch[MAX_NATIVE_BATCH];
    u64 n = args[1] & 0xffffffff; /* with MMU_UPDATE_PREEMPTED it is too many */
    if (args[2] || args[3] != DOMID_SELF || !read_batch(h, args[0], n, sizeof *batch, batch))
        return SLOW;
    for (u64 i = 0; i < n; i++)
        if ((batch[i].ptr & 7) == MMU_MACHPHYS_UPDATE)
            return SLOW;
    /* COMMIT: from here each request succeeds or ends the batch with its error. */
    *result = 0;
    for (u64 i = 0; i < n && !*result; i++)
        *result = update(h, &batch[i]);
    return DONE;
}

enum outcome update_va_mapping(struct hot *h, const u64 *args, s64 *result)
{
    u64 vaddr = args[0], value = args[1], maddr;
    if (!is_guest_vaddr(vaddr, 1) || !entry_maddr(h, vaddr, &maddr))
        return SLOW;
    *result = is_own(h, maddr >> 12) ? check_entry(h, value, maddr) : -XEN_EINVAL;
    if (*result)
        return DONE;
    /* COMMIT */
    *maddr_to_word(h, maddr) = value;
    count(h, DOM_COUNT_MMU_ENTRY);
    bool everywhere = args[2] & ~(u64)UVMF_FLUSHTYPE_MASK;
    switch (args[2] & UVMF_FLUSHTYPE_MASK) {
    case UVMF_TLB_FLUSH:
        flush_all(h, everywhere);
        break;
    case UVMF_INVLPG:
        flush_page(h, vaddr, everywhere);
        break;
    }
    return DONE;
}

static void set_xen_slots(struct hot *h, u64 l4)
{
    u64 *table = maddr_to_word(h, l4 << 12);
    table[M2P_SLOT] = h->domain[DOM_M2P_L4_ENTRY];
    table[GDT_SLOT] = h->domain[DOM_GDT_L4_ENTRY];
}

static bool is_native_command(u32 command)
{
    return command <= MMUEXT_INVLPG_ALL || command == MMUEXT_NEW_USER_BASEPTR;
}

static int extended(struct hot *h, const struct mmuext_op_request *op)
{
    u32 command = (u32)op->cmd;
    int error;
    switch (command) {
    case MMUEXT_PIN_L1_TABLE ... MMUEXT_PIN_L4_TABLE:
        if (!is_own(h, op->arg1))
            return -XEN_EINVAL;
        error = pin_frame(h, op->arg1, command + 1);
        if (!error && command == MMUEXT_PIN_L4_TABLE)
            set_xen_slots(h, op->arg1);
        return error;
    case MMUEXT_UNPIN_TABLE:
        return unpin_frame(h, op->arg1);
    case MMUEXT_NEW_BASEPTR:
        if (!is_own(h, op->arg1))
            return -XEN_EINVAL;
        set_xen_slots(h, op->arg1);
        h->vcpu[PV_CR3] = h->env[Q_CR3] = op->arg1 << 12;
        h->tlb_flush(h->cpu);
        count(h, DOM_COUNT_NEW_BASEPTR);
        return 0;
    case MMUEXT_NEW_USER_BASEPTR:
        if (op->arg1 && !is_own(h, op->arg1))
            return -XEN_EINVAL;
        h->vcpu[PV_USER_CR3] = op->arg1 << 12;
        return 0;
    case MMUEXT_TLB_FLUSH_LOCAL:
    case MMUEXT_TLB_FLUSH_MULTI:
    case MMUEXT_TLB_FLUSH_ALL:
        flush_all(h, command != MMUEXT_TLB_FLUSH_LOCAL);
        return 0;
    default: /* the three INVLPG */
        flush_page(h, op->arg1, command != MMUEXT_INVLPG_LOCAL);
        return 0;
    }
}

enum outcome mmuext_op(struct hot *h, const u64 *args, s64 *result)
{
    struct mmuext_op_request batch[MAX_NATIVE_BATCH];
    u64 n = args[1] & 0xffffffff; /* with MMU_UPDATE_PREEMPTED it is too many */
    if (args[2] || args[3] != DOMID_SELF || !read_batch(h, args[0], n, sizeof *batch, batch))
        return SLOW;
    for (u64 i = 0; i < n; i++)
        if (!is_native_command((u32)batch[i].cmd))
            return SLOW;
    /* COMMIT */
    *result = 0;
    for (u64 i = 0; i < n && !*result; i++)
        *result = extended(h, &batch[i]);
    return DONE;
}
