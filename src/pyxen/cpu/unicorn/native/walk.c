/* Guest virtual addresses: as pyxen/memory/pagetable.py and guest.py, with every table bounded. */
#include "hot.h"

#define PTE_PRESENT 1ull
#define PTE_RW 2ull
#define PTE_PSE 0x80ull
#define PTE_ADDRESS 0x000ffffffffff000ull
#define LOWER_HALF_END 0x0000800000000000ull
#define XEN_VIRT_END 0xffff880000000000ull

bool is_guest_vaddr(u64 vaddr, u64 length)
{
    u64 end = vaddr + length;
    bool wraps = end < vaddr;
    if (vaddr < LOWER_HALF_END)
        return !wraps && end <= LOWER_HALF_END;
    return vaddr >= XEN_VIRT_END && (!wraps || end == 0);
}

u64 *maddr_to_word(const struct hot *h, u64 maddr)
{
    if (UNLIKELY(maddr >> 12 >= h->domain[DOM_TOTAL_PAGES]))
        return NULL;
    return (u64 *)(h->domain[DOM_MEMORY_ADDRESS] + (maddr & ~7ull));
}

static bool entry_at(const struct hot *h, u64 table, u64 vaddr, int shift, u64 *entry)
{
    u64 *word = maddr_to_word(h, (table & PTE_ADDRESS) + ((vaddr >> shift) & 511) * 8);
    if (UNLIKELY(!word))
        return false;
    *entry = *word;
    return true;
}

bool entry_maddr(const struct hot *h, u64 vaddr, u64 *maddr)
{
    u64 entry = h->vcpu[PV_CR3];
    for (int shift = 39; shift > 12; shift -= 9) {
        if (!entry_at(h, entry, vaddr, shift, &entry) || !(entry & PTE_PRESENT))
            return false;
        if (shift < 39 && entry & PTE_PSE)
            return false;
    }
    *maddr = (entry & PTE_ADDRESS) + ((vaddr >> 12) & 511) * 8;
    return *maddr >> 12 < h->domain[DOM_TOTAL_PAGES];
}

bool translate(const struct hot *h, u64 vaddr, bool write, u64 *maddr)
{
    u64 need = write ? PTE_PRESENT | PTE_RW : PTE_PRESENT;
    u64 entry = h->vcpu[PV_CR3];
    for (int shift = 39; shift >= 12; shift -= 9) {
        if (!entry_at(h, entry, vaddr, shift, &entry) || (entry & need) != need)
            return false;
        if (shift == 30 && entry & PTE_PSE)
            return false;
        if (shift == 21 && entry & PTE_PSE) {
            *maddr = (entry & PTE_ADDRESS & ~0x1fffffull) | (vaddr & 0x1fffff);
            return *maddr >> 12 < h->domain[DOM_TOTAL_PAGES];
        }
    }
    *maddr = (entry & PTE_ADDRESS) | (vaddr & 0xfff);
    return *maddr >> 12 < h->domain[DOM_TOTAL_PAGES];
}

/* Host address of a range that lies in one page; NULL also when it crosses into the next. */
void *guest_range(const struct hot *h, u64 vaddr, u64 length, bool write)
{
    u64 maddr;
    if (!is_guest_vaddr(vaddr, length) || (vaddr & 0xfff) + length > 0x1000 ||
        !translate(h, vaddr, write, &maddr))
        return NULL;
    return (void *)(h->domain[DOM_MEMORY_ADDRESS] + maddr);
}
