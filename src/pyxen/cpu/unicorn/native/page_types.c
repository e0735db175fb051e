/* Page types: as pyxen/hypervisor/page_types.py, on the frame table of pyxen/memory/frames.py.
 *
 * What is not plain is SLOW, having changed nothing, but for one thing: a validation or the burial
 * of a dying table may have come some way. The frame table says how far, and the hypervisor, which
 * does the same operation then, goes on from there.
 */
#include "hot.h"

#define TYPE_MASK 0xffu
#define PINNED (1u << 8)
#define VALIDATED (1u << 9)
#define PARTIAL (1u << 10)
#define DYING (1u << 11)
#define RELEASED (1u << 12)
#define HELD_SHIFT 16
#define HELD_MASK (0x3ffu << HELD_SHIFT)
#define OWNER_MASK 0xffu
#define STAMP_SHIFT 8
#define STAMP_MASK 0xffffffu
#define MAX_REFERENCES (1u << 31)

#define PTE_PRESENT 1ull
#define PTE_RW 2ull
#define PTE_USER 4ull
#define PTE_ACCESSED_DIRTY 0x60ull
#define PTE_GLOBAL 0x100ull
#define PTE_NX (1ull << 63)
#define PTE_AVAILABLE 0x7ff0000000000e00ull
#define PTE_ADDRESS 0x000ffffffffff000ull
#define DISALLOWED_L1 0x98ull /* PWT, PCD, PSE */
#define DISALLOWED_UPPER (DISALLOWED_L1 | PTE_GLOBAL)
#define CHANGEABLE (PTE_NX | PTE_AVAILABLE | PTE_GLOBAL | PTE_ACCESSED_DIRTY | PTE_USER)
#define INVALID_MFN (PTE_ADDRESS >> 12)

#define ENTRIES 512
#define FIRST_XEN_SLOT 256
#define LAST_XEN_SLOT 271
#define M2P_SLOT 256
#define GDT_SLOT 260

enum frame_type { TYPE_NONE, TYPE_L1, TYPE_L2, TYPE_L3, TYPE_L4, TYPE_SEGDESC, TYPE_WRITABLE = 7 };

struct frame {
    u32 type;
    u32 uses;
    u32 refs;
    u32 owner; /* low byte 0: the domain */
};

/* How many tables may be looked at before the rest is left to the hypervisor: some milliseconds. */
static __thread unsigned tables_left;

void begin_page_types(void)
{
    tables_left = 2048;
}

static struct frame *record_of(const u64 *domain, u64 mfn)
{
    return (struct frame *)domain[DOM_FRAME_TABLE] + mfn;
}

static struct frame *frame_at(const struct hot *h, u64 mfn)
{
    return record_of(h->domain, mfn);
}

static u64 *table_at(const struct hot *h, u64 mfn)
{
    return (u64 *)(h->domain[DOM_MEMORY_ADDRESS] + (mfn << 12));
}

bool is_domains_frame(const struct hot *h, u64 mfn)
{
    return mfn < h->domain[DOM_TOTAL_PAGES] && !(frame_at(h, mfn)->owner & OWNER_MASK);
}

bool is_guest_frame(const struct hot *h, u64 mfn)
{
    return mfn >= h->domain[DOM_FIRST_GUEST_MFN] && mfn < h->domain[DOM_END_GUEST_MFN];
}

static u32 kind(const struct frame *f)
{
    return f->type & TYPE_MASK;
}

static bool is_level(u32 type)
{
    return type >= TYPE_L1 && type <= TYPE_L4;
}

unsigned level_of(const struct hot *h, u64 mfn)
{
    const struct frame *f = frame_at(h, mfn);
    return f->uses && f->type & VALIDATED && is_level(kind(f)) ? kind(f) : 0;
}

static u64 mfn_of(u64 entry)
{
    return (entry & PTE_ADDRESS) >> 12;
}

static bool is_xen_slot(unsigned level, unsigned slot)
{
    return level == TYPE_L4 && slot >= FIRST_XEN_SLOT && slot <= LAST_XEN_SLOT;
}

static void set_type(struct frame *f, u32 type)
{
    f->type = (f->type & RELEASED) | type;
}

static void stamp(const u64 *domain, struct frame *f)
{
    f->owner = (f->owner & OWNER_MASK) |
               ((u32)domain[DOM_FLUSH_EPOCH] & STAMP_MASK) << STAMP_SHIFT;
}

/* everywhere: on the other vCPUs, too, which have a TLB of their own (vcpu_tlb.c). */
void flush_all(struct hot *h, bool everywhere)
{
    h->tlb_flush(h->cpu);
    h->flushes += everywhere;
    h->domain[DOM_FLUSH_EPOCH] += everywhere || h->domain[DOM_VCPUS] == 1;
    count(h, DOM_COUNT_FLUSH_ALL);
}

void set_xen_slots(struct hot *h, u64 l4)
{
    u64 *table = table_at(h, l4);
    for (unsigned slot = FIRST_XEN_SLOT; slot <= LAST_XEN_SLOT; slot++)
        table[slot] = 0;
    table[M2P_SLOT] = h->domain[DOM_M2P_L4_ENTRY];
    table[GDT_SLOT] = h->domain[DOM_GDT_L4_ENTRY];
}

/* --- taking ---------------------------------------------------------------------------------- */

/* A table that nobody uses, with `held` entries that hold references. */
static void stop(struct frame *f, u32 level, u32 held)
{
    set_type(f, level | PARTIAL | held << HELD_SHIFT);
    f->uses = 0;
    f->refs++;
}

static enum outcome take_l1(struct hot *h, u64 entry, s64 *error)
{
    u64 mfn = mfn_of(entry);
    *error = 0;
    if (entry & DISALLOWED_L1)
        *error = -XEN_EINVAL;
    else if (mfn >= h->domain[DOM_TOTAL_PAGES])
        *error = mfn == INVALID_MFN ? -XEN_EINVAL : -XEN_EPERM;
    if (*error)
        return DONE;
    struct frame *f = frame_at(h, mfn);
    bool writable = entry & PTE_RW;
    if (f->owner & OWNER_MASK || f->refs >= MAX_REFERENCES ||
        (writable && f->uses && kind(f) != TYPE_WRITABLE)) {
        *error = -XEN_EBUSY;
        return DONE;
    }
    if (writable) {
        if (!f->uses) {
            if (f->type & PARTIAL)
                return SLOW;
            set_type(f, TYPE_WRITABLE | VALIDATED);
        }
        f->uses++;
    }
    f->refs++;
    return DONE;
}

static bool validate(struct hot *h, u64 mfn, u32 level);

/* One more use as a table of this level, and one more reference. */
static enum outcome take_table(struct hot *h, u64 mfn, u32 level, s64 *error)
{
    *error = 0;
    if (!is_domains_frame(h, mfn) || frame_at(h, mfn)->refs >= MAX_REFERENCES) {
        *error = -XEN_EINVAL;
        return DONE;
    }
    struct frame *f = frame_at(h, mfn);
    if (f->uses) {
        if (kind(f) != level || !(f->type & VALIDATED)) {
            *error = -XEN_EINVAL;
            return DONE;
        }
        f->uses++;
    } else {
        if (f->type & PARTIAL && kind(f) != level)
            return SLOW;
        if (f->owner >> STAMP_SHIFT == (h->domain[DOM_FLUSH_EPOCH] & STAMP_MASK))
            flush_all(h, true);
        if (!validate(h, mfn, level))
            return SLOW;
    }
    f->refs++;
    return DONE;
}

/* What an entry of a table refers to. */
static enum outcome take(struct hot *h, u64 table, u32 level, u64 entry, s64 *error)
{
    if (level == TYPE_L1)
        return take_l1(h, entry, error);
    *error = -XEN_EINVAL;
    if (entry & DISALLOWED_UPPER)
        return DONE;
    u64 child = mfn_of(entry);
    /* Linear page tables are left to the hypervisor. */
    if (is_domains_frame(h, child) && (child == table || kind(frame_at(h, child)) == level))
        return SLOW;
    return take_table(h, child, level - 1, error);
}

/* Take all that a table refers to. False: not to the end; it is PARTIAL then. */
static bool validate(struct hot *h, u64 mfn, u32 level)
{
    struct frame *f = frame_at(h, mfn);
    const u64 *entries = table_at(h, mfn);
    if (!tables_left)
        return false;
    tables_left--;
    u32 slot = 0;
    if (f->type & PARTIAL) {
        slot = (f->type & HELD_MASK) >> HELD_SHIFT;
        f->refs--;
    }
    set_type(f, level);
    f->uses = 1;
    for (; slot < ENTRIES; slot++) {
        s64 error;
        if (!(entries[slot] & PTE_PRESENT) || is_xen_slot(level, slot))
            continue;
        if (take(h, mfn, level, entries[slot], &error) == SLOW || error) {
            stop(f, level, slot);
            return false;
        }
    }
    if (level == TYPE_L4)
        set_xen_slots(h, mfn);
    f->type |= VALIDATED;
    return true;
}

/* --- giving back ----------------------------------------------------------------------------- */

/* Whether `drop` can do it: no linear entry, no frame that would have to be freed. */
static bool is_plain(const struct hot *h, u64 table, u32 level, u64 entry)
{
    u64 mfn = mfn_of(entry);
    const struct frame *f = frame_at(h, mfn);
    if (level == TYPE_L1)
        return !(f->type & RELEASED);
    return mfn != table && kind(f) == level - 1;
}

static void put_page_and_type(struct hot *h, u64 mfn)
{
    struct frame *f = frame_at(h, mfn);
    u32 type = kind(f);
    if (!--f->uses) {
        if (is_level(type)) {
            stop(f, type, ENTRIES);
            f->type |= DYING;
            ((u32 *)h->domain[DOM_DYING_STACK])[h->domain[DOM_DYING]++] = (u32)mfn;
        } else {
            set_type(f, TYPE_NONE);
            if (type == TYPE_WRITABLE)
                stamp(h->domain, f);
        }
    }
    f->refs--;
}

static void drop(struct hot *h, u32 level, u64 entry)
{
    if (level == TYPE_L1 && !(entry & PTE_RW))
        frame_at(h, mfn_of(entry))->refs--;
    else
        put_page_and_type(h, mfn_of(entry));
}

/* Give back what a dying table holds. False: not to the end. */
static bool bury(struct hot *h, u64 mfn)
{
    struct frame *f = frame_at(h, mfn);
    const u64 *entries = table_at(h, mfn);
    u32 level = kind(f), slot = (f->type & HELD_MASK) >> HELD_SHIFT;
    if (f->type & RELEASED)
        return false;
    while (slot) {
        u64 entry = entries[--slot];
        if (!(entry & PTE_PRESENT) || is_xen_slot(level, slot))
            continue;
        if (!is_plain(h, mfn, level, entry)) {
            f->type = (f->type & ~HELD_MASK) | (slot + 1) << HELD_SHIFT;
            return false;
        }
        drop(h, level, entry);
    }
    set_type(f, TYPE_NONE);
    f->refs--;
    return true;
}

static void settle(struct hot *h)
{
    u32 *stack = (u32 *)h->domain[DOM_DYING_STACK];
    u64 *dying = &h->domain[DOM_DYING];
    for (; *dying && tables_left; tables_left--) {
        u32 mfn = stack[--*dying];
        if (!bury(h, mfn)) {
            /* What it buried of its children lies above: it goes to the bottom of these. */
            stack[(*dying)++] = mfn;
            return;
        }
    }
}

/* --- the operations -------------------------------------------------------------------------- */

enum outcome modify_entry(struct hot *h, u64 maddr, unsigned level, u64 value, bool preserve_ad,
                          s64 *error)
{
    u64 table = maddr >> 12, *entry = maddr_to_word(h, maddr), old = *entry;
    bool same = false;
    *error = -XEN_EINVAL;
    if (is_xen_slot(level, (maddr & 0xfff) >> 3))
        return DONE;
    if (value & PTE_PRESENT) {
        if (value & (level == TYPE_L1 ? DISALLOWED_L1 : DISALLOWED_UPPER))
            return DONE;
        same = !((old ^ value) & ~CHANGEABLE);
    }
    bool drops = !same && old & PTE_PRESENT;
    if (drops && !is_plain(h, table, level, old))
        return SLOW;
    *error = 0;
    if (value & PTE_PRESENT && !same &&
        (take(h, table, level, value, error) == SLOW || *error))
        return *error ? DONE : SLOW;
    /* COMMIT */
    *entry = preserve_ad ? value | (old & PTE_ACCESSED_DIRTY) : value;
    if (drops) {
        drop(h, level, old);
        settle(h);
    }
    return DONE;
}

/* A word of a page that is no table. */
static enum outcome write_ordinary(struct hot *h, u64 maddr, u64 value, s64 *error)
{
    struct frame *f = frame_at(h, maddr >> 12);
    if (f->refs >= MAX_REFERENCES || (f->uses && kind(f) != TYPE_WRITABLE)) {
        *error = -XEN_EINVAL;
        return DONE;
    }
    /* Blocks that were translated from it would have to go. */
    if (maddr >= h->memory_bytes || h->code_pages[maddr >> 12])
        return SLOW;
    if (!f->uses) {
        if (f->type & PARTIAL)
            return SLOW;
        set_type(f, TYPE_NONE);
        stamp(h->domain, f);
    }
    *maddr_to_word(h, maddr) = value;
    *error = 0;
    return DONE;
}

enum outcome update_entry(struct hot *h, u64 maddr, u64 value, bool preserve_ad, s64 *error)
{
    if (!is_domains_frame(h, maddr >> 12)) {
        *error = -XEN_EINVAL;
        return DONE;
    }
    unsigned level = level_of(h, maddr >> 12);
    if (level)
        return modify_entry(h, maddr, level, value, preserve_ad, error);
    return write_ordinary(h, maddr, value, error);
}

enum outcome pin_table(struct hot *h, u64 mfn, unsigned level, s64 *error)
{
    if (is_domains_frame(h, mfn) && frame_at(h, mfn)->type & PINNED) {
        *error = -XEN_EINVAL;
        return DONE;
    }
    if (take_table(h, mfn, level, error) == SLOW)
        return SLOW;
    if (!*error)
        frame_at(h, mfn)->type |= PINNED;
    return DONE;
}

s64 unpin_table(struct hot *h, u64 mfn)
{
    if (!is_domains_frame(h, mfn) || !(frame_at(h, mfn)->type & PINNED))
        return -XEN_EINVAL;
    frame_at(h, mfn)->type &= ~PINNED;
    put_page_and_type(h, mfn);
    settle(h);
    return 0;
}

/* Another top-level table in *cr3, which is a machine address; 0 is none. */
enum outcome replace_base(struct hot *h, u64 *cr3, u64 l4, s64 *error)
{
    u64 old = *cr3 >> 12;
    *error = 0;
    if (old == l4)
        return DONE;
    if (l4 && (take_table(h, l4, TYPE_L4, error) == SLOW || *error))
        return *error ? DONE : SLOW;
    /* COMMIT */
    *cr3 = l4 << 12;
    return DONE;
}

void put_base(struct hot *h, u64 l4)
{
    put_page_and_type(h, l4);
    settle(h);
}

/* --- for somebody outside of the guest's page tables ------------------------------------------ */

bool can_hold(const u64 *domain, u64 mfn, bool writable)
{
    if (mfn >= domain[DOM_TOTAL_PAGES])
        return false;
    const struct frame *f = record_of(domain, mfn);
    if (f->owner & OWNER_MASK || f->refs >= MAX_REFERENCES - 1)
        return false;
    if (!writable)
        return true;
    return !(f->type & PARTIAL) &&
           (!f->uses || (kind(f) == TYPE_WRITABLE && f->type & VALIDATED));
}

void hold(const u64 *domain, u64 mfn, bool writable)
{
    struct frame *f = record_of(domain, mfn);
    if (writable) {
        if (!f->uses)
            set_type(f, TYPE_WRITABLE | VALIDATED);
        f->uses++;
    }
    f->refs++;
}

/* Not if the frame would have to be freed then. */
bool can_let_go(const u64 *domain, u64 mfn)
{
    const struct frame *f = record_of(domain, mfn);
    return f->refs > 1 || !(f->type & RELEASED);
}

void let_go(const u64 *domain, u64 mfn, bool writable)
{
    struct frame *f = record_of(domain, mfn);
    if (writable && !--f->uses) {
        set_type(f, TYPE_NONE);
        stamp(domain, f);
    }
    f->refs--;
}
