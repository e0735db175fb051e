/* The native hot path: handles the commonest reasons why a PV guest stops, inside of the callback.
 *
 * Its semantics are those of pyxen/hypervisor, which does the same in Python; tests/diff compares
 * the two. Rule: check everything, then act; whatever is not the plain case is SLOW, having changed
 * nothing, and the exit goes to the hypervisor.
 */
#ifndef PYXEN_HOT_H
#define PYXEN_HOT_H

#include <stdbool.h>
#include <stddef.h>
#include <string.h>

#include "layout.h"
#include "pvstate.h"

#define HOT_API __attribute__((visibility("default")))
#define LIKELY(x) __builtin_expect(!!(x), 1)
#define UNLIKELY(x) __builtin_expect(!!(x), 0)

enum exit_kind {
    EXIT_NONE,
    EXIT_HYPERCALL,
    EXIT_GUEST_SYSCALL,
    EXIT_TRAP,
    EXIT_INVALID_OPCODE,
    EXIT_SYSENTER,
};

/* One engine. The fields up to `stop` are filled in by ../native.py (class Hot), in this order. */
struct hot {
    u64 *env;
    void *cpu;
    void *uc;
    u64 *domain; /* PvDomain.words; NULL: no hot path, every exit is recorded */
    u64 *vcpu;   /* PvState.words of the selected vCPU */
    u64 exit_kind;
    u64 vector;
    u64 error_code;
    u64 fault_address;
    u64 software;
    int (*emu_start)(void *uc, u64 begin, u64 until, u64 timeout, size_t count);
    int (*emu_stop)(void *uc);
    void (*tlb_flush)(void *cpu);
    void (*tlb_flush_page)(void *cpu, u64 vaddr);
    u64 (*compute_flags)(u64 dst, u64 src1, u64 src2, int op);
    u8 *memory; /* the host address of machine memory, which is one region at 0 */
    u64 memory_bytes; /* 0: softmmu.c does nothing for this engine */
    u8 *code_pages; /* a byte a page, softmmu.c */
    void (*tlb_init)(void *cpu);
    u64 flushes;  /* these three: vcpu_tlb.c */
    u64 new_code;
    u64 discards;
    u64 skew; /* what the translator adds to RIP after the callback: 2 for SYSCALL, else 0 */
};

static inline u32 *env32(const struct hot *h)
{
    return (u32 *)h->env;
}

static inline bool user_mode(const struct hot *h)
{
    return (env32(h)[D_HFLAGS] & HF_CPL) == USER_CPL;
}

static inline u64 get_rip(const struct hot *h)
{
    return h->env[Q_RIP] + h->skew;
}

static inline void set_rip(struct hot *h, u64 rip)
{
    h->env[Q_RIP] = rip - h->skew;
}

static inline void count(struct hot *h, enum pv_domain_word counter)
{
    h->domain[counter]++;
}

static inline u64 load64(const void *p)
{
    u64 v;
    memcpy(&v, p, 8);
    return v;
}

static inline void store64(void *p, u64 v)
{
    memcpy(p, &v, 8);
}

/* The engine that this thread is in, if it uses softmmu.c. */
extern __thread struct hot *running;

/* softmmu.c */
#define MMU_MODES 3
#define DESCRIPTOR_BYTES 0x2b8
void code_the_long_way(const struct hot *h);

/* flags.c */
u64 get_flags(const struct hot *h);
void set_flags(struct hot *h, u64 flags);

/* walk.c: addresses of the guest. NULL or false is a fault, or something for the slow path. */
bool is_guest_vaddr(u64 vaddr, u64 length);
u64 *maddr_to_word(const struct hot *h, u64 maddr);
bool entry_maddr(const struct hot *h, u64 vaddr, u64 *maddr);
bool translate(const struct hot *h, u64 vaddr, bool write, u64 *maddr);
void *guest_range(const struct hot *h, u64 vaddr, u64 length, bool write);

/* How an operation went: left to the hypervisor with nothing changed; done, perhaps with an error;
 * or done in part, and the arguments say what is left.
 */
enum outcome { SLOW, DONE, REST };

/* page_types.c. Errors are 0 or a negative errno. */
void begin_page_types(void);
void flush_all(struct hot *h, bool everywhere);
bool is_domains_frame(const struct hot *h, u64 mfn);
bool is_guest_frame(const struct hot *h, u64 mfn);
unsigned level_of(const struct hot *h, u64 mfn);
enum outcome modify_entry(struct hot *h, u64 maddr, unsigned level, u64 value, bool preserve_ad,
                          s64 *error);
enum outcome update_entry(struct hot *h, u64 maddr, u64 value, bool preserve_ad, s64 *error);
enum outcome pin_table(struct hot *h, u64 mfn, unsigned level, s64 *error);
s64 unpin_table(struct hot *h, u64 mfn);
void set_xen_slots(struct hot *h, u64 l4);
enum outcome replace_base(struct hot *h, u64 *cr3, u64 l4, s64 *error);
void put_base(struct hot *h, u64 l4);

/* For a use of a frame that no page table shows: by the words of PvDomain alone. */
bool can_hold(const u64 *domain, u64 mfn, bool writable);
void hold(const u64 *domain, u64 mfn, bool writable);
bool can_let_go(const u64 *domain, u64 mfn);
void let_go(const u64 *domain, u64 mfn, bool writable);

/* bounce.c: into the guest kernel and back to its user mode. */
struct bounce {
    u64 address;
    bool has_error;
    u64 error_code;
    bool mask_events;
    bool syscall; /* show the flat selectors instead of the loaded ones */
};
bool bounce(struct hot *h, const struct bounce *b);
bool guest_syscall(struct hot *h);
bool iret(struct hot *h);
bool page_fault(struct hot *h, u64 error_code, u64 vaddr);
bool general_protection(struct hot *h);
void deliver_events(struct hot *h);

/* mmu.c, hypercall.c */
enum outcome mmu_update(struct hot *h, u64 *args, s64 *result);
enum outcome mmuext_op(struct hot *h, u64 *args, s64 *result);
enum outcome update_va_mapping(struct hot *h, const u64 *args, s64 *result);
void record_hypercall(struct hot *h, u64 number, const u64 *args, s64 result);
bool hypercall(struct hot *h);

/* page_table_write.c */
enum page_table_write { WRITE_DONE, WRITE_GUESTS_FAULT, WRITE_SLOW };
enum page_table_write page_table_write(struct hot *h, u64 vaddr);

/* exit_check.c: true while this thread translates for an engine of ours. */
extern __thread bool exit_check_active;

enum { XEN_EPERM = 1, XEN_EBUSY = 16, XEN_EINVAL = 22, XEN_ENOSYS = 38 };

#endif
