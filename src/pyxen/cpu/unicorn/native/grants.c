/* Uses of whole granted pages by the host: as pyxen/hypervisor/grant.py, for domain 0.
 *
 * Both functions do one reference after the other and stop at the first that is not plain, for
 * which they changed nothing: how many are done is the result, and Python does that one. What the
 * guest can change is read once, and marked by atomic operations in Xen's order.
 */
#include "hot.h"

#define GTF_TYPE_MASK 3u
#define GTF_PERMIT_ACCESS 1u
#define GTF_READONLY (1u << 2)
#define GTF_READING (1u << 3)
#define GTF_WRITING (1u << 4)
#define GTF_SUB_PAGE (1u << 8)
#define DOMAIN_0 0u
#define PAGE_BYTES 4096u
#define MAX_PINS 128

enum way { HOST_WRITE, HOST_READ, DEVICE_WRITE, DEVICE_READ, WAYS };

/* A record of pyxen/hypervisor/grant_active.py. */
struct active {
    u16 domid;
    u16 sub_page;
    u32 mfn;
    u16 start;
    u16 length;
    u8 pins[WAYS];
};

static u32 *entry_of(const u64 *grants, u32 gref)
{
    return (u32 *)(grants[GRANTS_TABLE] + (u64)gref * (grants[GRANTS_VERSION] == 1 ? 8 : 16));
}

static u64 frame_of(const u64 *grants, const u32 *entry)
{
    if (grants[GRANTS_VERSION] == 1)
        return __atomic_load_n(entry + 1, __ATOMIC_RELAXED);
    return __atomic_load_n((const u64 *)entry + 1, __ATOMIC_RELAXED);
}

/* Where the marks of use are: in the flags, or in the status word of version 2. */
static u16 *marks_of(const u64 *grants, u32 gref)
{
    if (grants[GRANTS_VERSION] == 1)
        return (u16 *)entry_of(grants, gref);
    return (u16 *)grants[GRANTS_STATUS] + gref;
}

static bool is_used(const struct active *a)
{
    return a->pins[HOST_WRITE] | a->pins[HOST_READ] | a->pins[DEVICE_WRITE] |
           a->pins[DEVICE_READ];
}

static bool is_written(const struct active *a)
{
    return a->pins[HOST_WRITE] | a->pins[DEVICE_WRITE];
}

/* Mark an entry that was found to be `header`. False, with nothing changed: it is another by now. */
static bool mark_checked(const u64 *grants, u32 gref, u32 header, u16 marks)
{
    u32 *entry = entry_of(grants, gref);
    if (grants[GRANTS_VERSION] == 1)
        return __atomic_compare_exchange_n(entry, &header, header | marks, false,
                                           __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
    u16 *status = marks_of(grants, gref);
    u16 old = __atomic_fetch_or(status, marks, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(entry, __ATOMIC_SEQ_CST) == header)
        return true;
    __atomic_fetch_and(status, (u16)~(marks & ~old), __ATOMIC_SEQ_CST);
    return false;
}

static bool begin(const u64 *grants, u32 gref, bool write, u32 *mfn)
{
    const u64 *domain = (const u64 *)grants[GRANTS_DOMAIN];
    if (gref >= grants[GRANTS_ENTRIES])
        return false;
    struct active *a = (struct active *)grants[GRANTS_ACTIVE] + gref;
    u8 *pin = &a->pins[write ? HOST_WRITE : HOST_READ];
    bool first = !is_used(a), check = first || (write && !is_written(a));
    u16 marks = write ? GTF_READING | GTF_WRITING : GTF_READING;
    u64 frame = a->mfn;
    u32 header = 0;
    if (!first && (a->domid != DOMAIN_0 || a->sub_page || *pin >= MAX_PINS))
        return false;
    if (check) {
        header = __atomic_load_n(entry_of(grants, gref), __ATOMIC_ACQUIRE);
        if (write && header & GTF_READONLY)
            return false;
    }
    if (first) {
        if ((header & (GTF_TYPE_MASK | GTF_SUB_PAGE)) != GTF_PERMIT_ACCESS ||
            header >> 16 != DOMAIN_0)
            return false;
        frame = frame_of(grants, entry_of(grants, gref));
    }
    if (!can_hold(domain, frame, write))
        return false;
    if (check && !mark_checked(grants, gref, header, marks))
        return false;
    /* COMMIT */
    if (!check)
        __atomic_fetch_or(marks_of(grants, gref), marks, __ATOMIC_SEQ_CST);
    hold(domain, frame, write);
    if (first)
        *a = (struct active){.domid = DOMAIN_0, .mfn = (u32)frame, .length = PAGE_BYTES};
    ++*pin;
    *mfn = (u32)frame;
    return true;
}

static bool end(const u64 *grants, u32 gref, bool write)
{
    const u64 *domain = (const u64 *)grants[GRANTS_DOMAIN];
    if (gref >= grants[GRANTS_ENTRIES])
        return false;
    struct active *a = (struct active *)grants[GRANTS_ACTIVE] + gref;
    u8 *pin = &a->pins[write ? HOST_WRITE : HOST_READ];
    if (!*pin || !can_let_go(domain, a->mfn))
        return false;
    /* COMMIT */
    let_go(domain, a->mfn, write);
    --*pin;
    u16 marks = write && !is_written(a) ? GTF_WRITING : 0;
    if (!is_used(a)) {
        *a = (struct active){0};
        marks |= GTF_READING;
    }
    if (marks)
        __atomic_fetch_and(marks_of(grants, gref), (u16)~marks, __ATOMIC_SEQ_CST);
    return true;
}

/* Begin to use pages: each reference that is done becomes its mfn. */
HOT_API u64 hot_begin_grants(const u64 *grants, u32 *refs, u64 count, bool write)
{
    u64 done = 0;
    while (done < count && begin(grants, refs[done], write, &refs[done]))
        done++;
    ((u64 *)grants[GRANTS_DOMAIN])[DOM_COUNT_GRANT] += done;
    return done;
}

/* End what began. */
HOT_API u64 hot_end_grants(const u64 *grants, const u32 *refs, u64 count, bool write)
{
    u64 done = 0;
    while (done < count && end(grants, refs[done], write))
        done++;
    return done;
}
