/* The frame table: as pyxen/memory/frames.py, and check_entry of hypercall/page_tables.py. */
#include "hot.h"

#define TYPE_MASK 0xffu
#define PINNED (1u << 8)
#define VALIDATED (1u << 9)
#define TYPE_L4 4u
#define PTE_PRESENT 1ull
#define PTE_ADDRESS 0x000ffffffffff000ull
#define FIRST_XEN_SLOT 256
#define LAST_XEN_SLOT 271

struct frame {
    u32 type;
    u32 uses;
    u32 refs;
    u32 owner; /* 0: the domain */
};

static struct frame *frame_of(const struct hot *h, u64 mfn)
{
    return (struct frame *)h->domain[DOM_FRAME_TABLE] + mfn;
}

bool is_domains_frame(const struct hot *h, u64 mfn)
{
    return mfn < h->domain[DOM_TOTAL_PAGES] && frame_of(h, mfn)->owner == 0;
}

bool is_guest_frame(const struct hot *h, u64 mfn)
{
    return mfn >= h->domain[DOM_FIRST_GUEST_MFN] && mfn < h->domain[DOM_END_GUEST_MFN];
}

int check_entry(const struct hot *h, u64 entry, u64 maddr)
{
    u64 slot = (maddr & 0xfff) >> 3;
    if (slot >= FIRST_XEN_SLOT && slot <= LAST_XEN_SLOT &&
        (frame_of(h, maddr >> 12)->type & TYPE_MASK) == TYPE_L4)
        return -XEN_EINVAL;
    if (entry & PTE_PRESENT && !is_domains_frame(h, (entry & PTE_ADDRESS) >> 12))
        return -XEN_EINVAL;
    return 0;
}

static int get_type(struct hot *h, u64 mfn, u32 type)
{
    if (!is_domains_frame(h, mfn))
        return -XEN_EPERM;
    struct frame *f = frame_of(h, mfn);
    if ((f->type & TYPE_MASK) != type) {
        if (f->uses)
            return -XEN_EBUSY;
        f->type = type | VALIDATED;
    }
    f->uses++;
    f->refs++;
    return 0;
}

int pin_frame(struct hot *h, u64 mfn, u32 type)
{
    if (is_domains_frame(h, mfn) && frame_of(h, mfn)->type & PINNED)
        return -XEN_EINVAL;
    int error = get_type(h, mfn, type);
    if (!error)
        frame_of(h, mfn)->type |= PINNED;
    return error;
}

int unpin_frame(struct hot *h, u64 mfn)
{
    if (!is_domains_frame(h, mfn) || !(frame_of(h, mfn)->type & PINNED))
        return -XEN_EINVAL;
    struct frame *f = frame_of(h, mfn);
    f->type &= ~PINNED;
    if (!f->uses)
        return -XEN_EINVAL;
    f->uses--;
    f->refs--;
    if (!f->uses)
        f->type = 0;
    return 0;
}
