/* Into the guest kernel and back: as pyxen/hypervisor/trap.py.
 * A frame, from the lowest address: rcx r11 [error] rip cs|mask<<32 rflags rsp ss
 */
#include "hot.h"

#define FLAT_KERNEL_CS_SHOWN 0xe030u
#define FLAT_KERNEL_SS 0xe02bu
#define FLAT_USER_CS64 0xe033u
#define FLAT_USER_SS64 0xe02bu
#define VGCF_in_syscall 0x100u
#define CLEARED_ON_ENTRY ((u64)(FLAG_TF | FLAG_NT | FLAG_RF | FLAG_VM | FLAG_AC))
#define UPCALL_PENDING 0
#define UPCALL_MASK 1
#define VCPU_INFO_CR2 16
#define VCPU_INFO_BYTES 64
#define PAGE_FAULT 14
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
    if (!frame || !info)
        return false;
    /* COMMIT */
    u8 mask = info[UPCALL_MASK];
    u64 flags = get_flags(h);
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
    set_flags(h, flags & ~CLEARED_ON_ENTRY);
    return true;
}

bool guest_syscall(struct hot *h)
{
    struct bounce b = {.address = h->vcpu[PV_SYSCALL_CALLBACK], .syscall = true};
    b.mask_events = h->vcpu[PV_SYSCALL_CALLBACK_FLAGS] & CALLBACKF_mask_events;
    if (!b.address || !bounce(h, &b))
        return false;
    count(h, DOM_COUNT_SYSCALL);
    return true;
}

/* Whether a user code selector names 64-bit code: anything else is the slow path's. */
static bool is_long_mode_code(const struct hot *h, u64 cs)
{
    u64 maddr;
    if (cs == FLAT_USER_CS64)
        return true;
    if (cs & 4 || !translate(h, h->env[Q_GDT_BASE] + (cs & 0xfff8), false, &maddr))
        return false;
    u64 descriptor = *maddr_to_word(h, maddr);
    /* P, DPL 3, S, code | L, not D */
    return (descriptor >> 40 & 0xf8) == 0xf8 && (descriptor >> 52 & 6) == 2;
}

bool iret(struct hot *h)
{
    u8 *info = vcpu_info(h);
    u8 *context = guest_range(h, h->env[RSP], 72, false);
    if (!context || !info)
        return false;
    u64 k[9];
    memcpy(k, context, sizeof k);
    u64 rax = k[0], r11 = k[1], rcx = k[2], how = k[3], rip = k[4], cs = k[5] & 0xffff;
    u64 flags = k[6], rsp = k[7], ss = k[8] & 0xffff;
    bool to_user = (cs & 3) == 3;
    /* With the trap flag the translator would step before the first instruction. */
    if (flags & FLAG_TF)
        return false;
    if (to_user && (!h->vcpu[PV_USER_CR3] || !is_long_mode_code(h, cs)))
        return false;
    /* COMMIT */
    u64 *env = h->env;
    if (to_user) {
        h->vcpu[PV_GS_BASE_KERNEL] = env[Q_GS_BASE];
        env[Q_GS_BASE] = h->vcpu[PV_GS_BASE_USER];
        set_level(h, (u32)cs, (u32)ss | 3, USER_CPL);
    }
    set_rip(h, rip);
    env[RSP] = rsp;
    env[RAX] = rax;
    env[RCX] = how & VGCF_in_syscall ? rip : rcx;
    env[R11] = how & VGCF_in_syscall ? flags : r11;
    set_flags(h, flags & ~(u64)(FLAG_IOPL | FLAG_VM | FLAG_NT));
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
