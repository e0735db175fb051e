/* Into the guest kernel and back: as pyxen/hypervisor/trap.py.
 * A frame, from the lowest address: rcx r11 [error] rip cs|mask<<32 rflags rsp ss
 */
#include "hot.h"

#define FLAT_KERNEL_CS_SHOWN 0xe030u
#define FLAT_KERNEL_SS 0xe02bu
#define FLAT_USER_CS32 0xe023u
#define FLAT_USER_CS64 0xe033u
#define FLAT_USER_SS64 0xe02bu
#define VGCF_in_syscall 0x100u
#define CLEARED_ON_ENTRY ((u64)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | FLAG_AC))
#define UPCALL_PENDING 0
#define UPCALL_MASK 1
#define VCPU_INFO_CR2 16
#define VCPU_INFO_BYTES 64
#define PAGE_FAULT 14
#define KERNEL_IOPL 1
#define OPCODE_CLI 0xfa
#define OPCODE_STI 0xfb
#define DESCRIPTOR_WINDOW 0xffff820000000000ull
#define DESCRIPTOR_WINDOW_END 0xffff820001000000ull
#define FAULT_PRESENT_WRITE 3u
#define FAULT_USER 4u

static void load_segment(struct hot *h, int at, u32 selector, u32 attributes)
{
    u32 *segment = env32(h) + at;
    segment[0] = selector;
    store64(segment + 2, 0);
    segment[D_SEGMENT_LIMIT] = FLAT_LIMIT;
    segment[D_SEGMENT_FLAGS] = attributes;
}

static void set_level(struct hot *h, u32 cs, u32 ss, u32 level)
{
    load_segment(h, D_CS, cs, CODE_64 | level << DPL_SHIFT);
    load_segment(h, D_SS, ss, DATA_FLAT | level << DPL_SHIFT);
    u32 *flags = env32(h) + D_HFLAGS;
    *flags &= ~(HF_CPL | HF_ADDSEG);
    *flags |= level | HF_LMA | HF_CS32 | HF_SS32 | HF_CS64;
}

static u8 *vcpu_info(const struct hot *h)
{
    u64 maddr = h->vcpu[PV_VCPU_INFO_MADDR];
    if ((maddr + VCPU_INFO_BYTES) >> 12 >= h->domain[DOM_TOTAL_PAGES])
        return NULL;
    return (u8 *)(h->domain[DOM_MEMORY_ADDRESS] + maddr);
}

bool bounce(struct hot *h, const struct bounce *b)
{
    u64 *env = h->env;
    u8 *info = vcpu_info(h);
    bool from_user = user_mode(h);
    u64 cs = FLAT_KERNEL_CS_SHOWN, ss = FLAT_KERNEL_SS, stack = env[RSP];
    if (from_user) {
        cs = (b->syscall ? FLAT_USER_CS64 : env32(h)[D_CS] & 0xffff) | 3;
        ss = b->syscall ? FLAT_USER_SS64 : env32(h)[D_SS] & 0xffff;
        stack = h->vcpu[PV_KERNEL_SP];
    }
    u64 size = b->has_error ? 64 : 56;
    u64 top = (stack & ~15ull) - size;
    u8 *frame = guest_range(h, top, size, true);
    if (!frame || !info || h->domain[DOM_ARCHITECTURAL_IOPL])
        return false;
    /* COMMIT */
    u8 mask = info[UPCALL_MASK];
    u64 flags = get_flags(h) & ~(u64)(b->syscall ? FLAG_RF : 0);
    u64 shown = (flags & ~(u64)(FLAG_IF | FLAG_IOPL)) | (mask ? 0 : FLAG_IF);
    u64 rcx = b->syscall ? get_rip(h) : env[RCX];
    u64 r11 = b->syscall ? flags : env[R11];
    u64 words[8] = {rcx, r11};
    int n = 2;
    if (b->has_error)
        words[n++] = b->error_code;
    words[n++] = get_rip(h);
    words[n++] = cs | (u64)mask << 32;
    words[n++] = shown;
    words[n++] = env[RSP];
    words[n++] = ss;
    memcpy(frame, words, size);
    env[RCX] = rcx;
    env[R11] = r11;
    if (from_user) {
        h->vcpu[PV_GS_BASE_USER] = env[Q_GS_BASE];
        env[Q_GS_BASE] = h->vcpu[PV_GS_BASE_KERNEL];
        set_level(h, KERNEL_CS, KERNEL_SS, KERNEL_CPL);
    }
    if (b->mask_events)
        info[UPCALL_MASK] = 1;
    env[RSP] = top;
    set_rip(h, b->address);
    set_flags(h, flags & ~(CLEARED_ON_ENTRY | (b->syscall ? FLAG_DF : 0)));
    return true;
}

bool guest_syscall(struct hot *h)
{
    struct bounce b = {.address = h->vcpu[PV_SYSCALL_CALLBACK], .syscall = true};
    b.mask_events = h->vcpu[PV_SYSCALL_CALLBACK_FLAGS] & CALLBACKF_mask_events;
    bool long_mode = env32(h)[D_HFLAGS] & HF_CS64;
    if (!b.address || !long_mode || !bounce(h, &b))
        return false;
    count(h, DOM_COUNT_SYSCALL);
    return true;
}

static bool descriptor(const struct hot *h, u64 selector, u64 *found)
{
    u64 maddr;
    if (selector & 4 || !translate(h, h->env[Q_GDT_BASE] + (selector & 0xfff8), false, &maddr))
        return false;
    *found = *maddr_to_word(h, maddr);
    return true;
}

/* Whether a user selector names 64-bit code: anything else is the slow path's. */
static bool is_long_mode_code(const struct hot *h, u64 cs)
{
    u64 found;
    if (cs == FLAT_USER_CS64)
        return true;
    /* P, DPL 3, S, code, not conforming | L, not D */
    return cs & 0xfffc && descriptor(h, cs, &found) && (found >> 40 & 0xfc) == 0xf8 &&
           (found >> 52 & 6) == 2;
}

static bool is_user_stack(const struct hot *h, u64 ss)
{
    u64 found;
    if (ss == FLAT_USER_SS64)
        return true;
    /* P, DPL 3, S, data, writable */
    return ss & 0xfffc && descriptor(h, ss, &found) && (found >> 40 & 0xfa) == 0xf2;
}

static bool is_canonical(u64 vaddr)
{
    return (u64)((s64)(vaddr << 16) >> 16) == vaddr;
}

/* What Xen's own IRETQ or SYSRETQ would take without a fault and without a trap afterwards. */
static bool is_plain_return(const struct hot *h, const u64 *context)
{
    u64 rip = context[4], cs = context[5] & 0xffff, flags = context[6], ss = context[8] & 0xffff;
    bool to_user = (cs & 3) == 3, sysret = context[3] & VGCF_in_syscall;
    if (!is_canonical(rip) || flags & FLAG_TF || (flags & FLAG_RF && h->env[Q_DR7] & 0xff))
        return false;
    if (to_user && !h->vcpu[PV_USER_CR3])
        return false;
    if (sysret)
        return cs != FLAT_USER_CS32;
    if (!to_user)
        return cs == FLAT_KERNEL_CS_SHOWN && (ss | 3) == FLAT_KERNEL_SS;
    return is_long_mode_code(h, cs) && is_user_stack(h, ss | 3);
}

bool iret(struct hot *h)
{
    u8 *info = vcpu_info(h);
    u8 *context = guest_range(h, h->env[RSP], 72, false);
    if (!context || !info || h->vcpu[PV_NMI_MASKED] || h->domain[DOM_ARCHITECTURAL_IOPL])
        return false;
    u64 k[9];
    memcpy(k, context, sizeof k);
    if (!is_plain_return(h, k))
        return false;
    /* COMMIT */
    u64 *env = h->env;
    u64 rip = k[4], cs = k[5] & 0xffff, flags = k[6], ss = k[8] & 0xffff;
    bool sysret = k[3] & VGCF_in_syscall;
    if ((cs & 3) == 3) {
        h->vcpu[PV_GS_BASE_KERNEL] = env[Q_GS_BASE];
        env[Q_GS_BASE] = h->vcpu[PV_GS_BASE_USER];
        if (sysret)
            set_level(h, FLAT_USER_CS64, FLAT_USER_SS64, USER_CPL);
        else
            set_level(h, (u32)cs, (u32)ss | 3, USER_CPL);
    }
    u64 kept = (flags & ~(u64)(FLAG_IOPL | FLAG_VM)) | FLAG_IF;
    set_rip(h, rip);
    env[RSP] = k[7];
    env[RAX] = k[0];
    env[RCX] = sysret ? rip : k[2];
    env[R11] = sysret ? kept : k[1];
    set_flags(h, kept);
    info[UPCALL_MASK] = flags & FLAG_IF ? 0 : 1;
    count(h, DOM_COUNT_IRET);
    return true;
}

bool page_fault(struct hot *h, u64 error_code, u64 vaddr)
{
    u8 *info = vcpu_info(h);
    struct bounce b = {.address = h->vcpu[PV_TRAPS_ADDRESS + PAGE_FAULT],
                       .has_error = true,
                       .error_code = error_code};
    b.mask_events = h->vcpu[PV_TRAPS_FLAGS + PAGE_FAULT] & TRAP_MASK_EVENTS;
    if (vaddr >= DESCRIPTOR_WINDOW && vaddr < DESCRIPTOR_WINDOW_END && !(error_code & FAULT_USER))
        return false;
    if (user_mode(h))
        b.error_code |= FAULT_USER;
    bool write_protected = (error_code & (FAULT_PRESENT_WRITE | FAULT_USER)) == FAULT_PRESENT_WRITE;
    if (!user_mode(h) && write_protected) {
        enum page_table_write outcome = page_table_write(h, vaddr);
        if (outcome != WRITE_GUESTS_FAULT)
            return outcome == WRITE_DONE;
    }
    if (!b.address || !info || !bounce(h, &b))
        return false;
    store64(info + VCPU_INFO_CR2, vaddr);
    count(h, DOM_COUNT_PAGE_FAULT);
    return true;
}

/* CLI and STI of a kernel that should use the event mask have no effect: hypervisor/emulate.py. */
bool general_protection(struct hot *h)
{
    const u8 *code = guest_range(h, get_rip(h), 1, false);
    if (user_mode(h) || !code || (*code != OPCODE_CLI && *code != OPCODE_STI))
        return false;
    if (h->vcpu[PV_IOPL] < KERNEL_IOPL || get_flags(h) & FLAG_TF)
        return false;
    set_rip(h, get_rip(h) + 1);
    count(h, DOM_COUNT_TRAP);
    return true;
}

/* The upcall on the way out. If its frame cannot be pushed, the hypervisor is asked to look. */
void deliver_events(struct hot *h)
{
    u8 *info = vcpu_info(h);
    struct bounce b = {.address = h->vcpu[PV_EVENT_CALLBACK], .mask_events = true};
    if (LIKELY(!info || !info[UPCALL_PENDING] || info[UPCALL_MASK] || !b.address))
        return;
    if (bounce(h, &b))
        count(h, DOM_COUNT_UPCALL);
    else
        h->emu_stop(h->uc);
}
