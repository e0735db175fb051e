/* A software TLB for each vCPU, where Unicorn has one for its one processor.
 *
 * To empty it at each change of the vCPU is right, and dear: the next few hundred accesses walk the
 * page tables again, and as many jumps look their block up in the hash table. So what belongs to a
 * vCPU is parked with it: the descriptors of the TLB (they point to its tables) and the cache of
 * jumps. Three things can happen to a parked vCPU; counters tell it when it comes back:
 *
 *     flushes    a flush that was meant for all vCPUs: everything is emptied
 *     new_code   a page got its first translated block: stores to it must go the long way
 *     discards   the translator threw all its blocks away: the cache of jumps points to nothing
 *
 * A single block that became invalid is marked so, and the cache of jumps looks at the mark.
 */
#include <stdlib.h>

#include "hot.h"

/* CPUTLB and CPUState.tb_jmp_cache */
#define TLB_BEFORE_ENV 0x890
#define TLB_BYTES 0x880
#define JUMPS_BEFORE_ENV 0x8918
#define JUMPS_BYTES 0x8000
#define FAST_TABLES 0x850 /* CPUTLB.f: three times mask, address */
#define FIRST_IOTLB 0x2d0 /* CPUTLB.d[0].iotlb */

struct parked_tlb {
    bool used;
    u64 flushes;
    u64 new_code;
    u64 discards;
    u8 tlb[TLB_BYTES];
    u8 jumps[JUMPS_BYTES];
};

static u8 *live_tlb(const struct hot *h)
{
    return (u8 *)h->env - TLB_BEFORE_ENV;
}

static u8 *live_jumps(const struct hot *h)
{
    return (u8 *)h->env - JUMPS_BEFORE_ENV;
}

static void come_back(struct hot *h, struct parked_tlb *coming)
{
    coming->used = false; /* the tables are the processor's now */
    memcpy(live_tlb(h), coming->tlb, TLB_BYTES);
    if (coming->flushes != h->flushes) {
        h->tlb_flush(h->cpu);
        return;
    }
    if (coming->discards == h->discards)
        memcpy(live_jumps(h), coming->jumps, JUMPS_BYTES);
    else
        memset(live_jumps(h), 0, JUMPS_BYTES);
    if (coming->new_code != h->new_code)
        code_the_long_way(h);
}

/* Instead of a flush when another vCPU is selected. False: this engine has to flush. */
HOT_API bool hot_change_tlb(struct hot *h, struct parked_tlb *going, struct parked_tlb *coming)
{
    if (!h->memory_bytes)
        return false;
    going->used = true;
    going->flushes = h->flushes;
    going->new_code = h->new_code;
    going->discards = h->discards;
    memcpy(going->tlb, live_tlb(h), TLB_BYTES);
    memcpy(going->jumps, live_jumps(h), JUMPS_BYTES);
    if (coming->used) {
        come_back(h, coming);
    } else {
        h->tlb_init(h->cpu);
        memset(live_jumps(h), 0, JUMPS_BYTES);
    }
    return true;
}

HOT_API size_t hot_parked_tlb_bytes(void)
{
    return sizeof(struct parked_tlb);
}

/* The tables of a vCPU that will not come back. The library allocates them with malloc. */
HOT_API void hot_free_tlb(struct parked_tlb *parked)
{
    if (!parked->used)
        return;
    parked->used = false;
    for (int mode = 0; mode < MMU_MODES; mode++) {
        free((void *)load64(parked->tlb + FAST_TABLES + 16 * mode + 8));
        free((void *)load64(parked->tlb + FIRST_IOTLB + DESCRIPTOR_BYTES * mode));
    }
}
