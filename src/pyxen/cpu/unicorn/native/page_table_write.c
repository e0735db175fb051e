/* Writes of a PV kernel to its read-only page tables: as pyxen/hypervisor/page_table_write.py, for
 * the instructions that compilers use for it. Encodings: Intel SDM volume 2.
 */
#include "hot.h"

#define PTE_RW 2ull
#define PTE_USER 4ull
#define MAX_INSTRUCTION 15

enum operation { OP_MOV, OP_XCHG, OP_CMPXCHG, OP_AND, OP_OR, OP_BTS, OP_BTR, OP_STOS };

struct write {
    enum operation operation;
    unsigned size;     /* of the memory operand, in bytes */
    unsigned length;   /* of the instruction */
    int gpr;           /* source register, or -1 for the immediate */
    u64 immediate;
    bool repeated;
};

struct decoder {
    const u8 *code;
    unsigned at;
    u8 rex;
    bool size16;
    bool rep;
    u8 modrm;
};

static unsigned operand_size(const struct decoder *d, bool byte)
{
    if (byte)
        return 1;
    if (d->rex & 8)
        return 8;
    return d->size16 ? 2 : 4;
}

static void read_prefixes(struct decoder *d)
{
    for (; d->at < MAX_INSTRUCTION; d->at++) {
        u8 b = d->code[d->at];
        if (b == 0x66)
            d->size16 = true;
        else if (b == 0xf3)
            d->rep = true;
        else if (b != 0xf0 && b != 0x3e) /* LOCK; DS, which Linux puts in its place on one CPU */
            break;
    }
    if ((d->code[d->at] & 0xf0) == 0x40)
        d->rex = d->code[d->at++];
}

/* Step over ModRM, SIB and displacement. False for a register operand. */
static bool read_memory_operand(struct decoder *d)
{
    d->modrm = d->code[d->at++];
    unsigned mod = d->modrm >> 6, rm = d->modrm & 7, base = rm;
    if (mod == 3)
        return false;
    if (rm == 4)
        base = d->code[d->at++] & 7;
    if (mod == 1)
        d->at += 1;
    else if (mod == 2 || base == 5)
        d->at += 4;
    return true;
}

static s64 read_immediate(struct decoder *d, unsigned bytes)
{
    s64 value = 0;
    memcpy(&value, d->code + d->at, bytes);
    d->at += bytes;
    unsigned shift = 64 - 8 * bytes;
    return (s64)((u64)value << shift) >> shift;
}

static bool with_register(struct decoder *d, struct write *w, enum operation op, bool byte)
{
    if (!read_memory_operand(d))
        return false;
    w->operation = op;
    w->size = operand_size(d, byte);
    w->gpr = ((d->modrm >> 3) & 7) | (d->rex & 4) << 1;
    /* AH, CH, DH, BH are left to the slow path. */
    return !byte || d->rex || w->gpr < 4;
}

static bool with_immediate(struct decoder *d, struct write *w, bool byte, bool short_immediate)
{
    w->size = operand_size(d, byte);
    w->gpr = -1;
    unsigned bytes = w->size > 4 ? 4 : w->size;
    w->immediate = (u64)read_immediate(d, short_immediate ? 1 : bytes);
    return true;
}

static bool decode_group1(struct decoder *d, struct write *w, u8 opcode)
{
    if (!read_memory_operand(d))
        return false;
    unsigned extension = (d->modrm >> 3) & 7;
    if (extension != 1 && extension != 4)
        return false;
    w->operation = extension == 1 ? OP_OR : OP_AND;
    return with_immediate(d, w, opcode == 0x80, opcode == 0x83);
}

static bool decode_two_byte(struct decoder *d, struct write *w)
{
    u8 opcode = d->code[d->at++];
    switch (opcode) {
    case 0xb0:
    case 0xb1:
        return with_register(d, w, OP_CMPXCHG, opcode == 0xb0);
    case 0xab:
        return with_register(d, w, OP_BTS, false);
    case 0xb3:
        return with_register(d, w, OP_BTR, false);
    case 0xba:
        if (!read_memory_operand(d) || ((d->modrm >> 3) & 7) < 5 || ((d->modrm >> 3) & 7) > 6)
            return false;
        w->operation = ((d->modrm >> 3) & 7) == 5 ? OP_BTS : OP_BTR;
        return with_immediate(d, w, false, true);
    }
    return false;
}

static bool decode(const u8 *code, struct write *w)
{
    struct decoder d = {.code = code};
    bool done = false;
    read_prefixes(&d);
    u8 opcode = d.code[d.at++];
    switch (opcode) {
    case 0x88:
    case 0x89:
        done = with_register(&d, w, OP_MOV, opcode == 0x88);
        break;
    case 0x86:
    case 0x87:
        done = with_register(&d, w, OP_XCHG, opcode == 0x86);
        break;
    case 0x20:
    case 0x21:
        done = with_register(&d, w, OP_AND, opcode == 0x20);
        break;
    case 0x08:
    case 0x09:
        done = with_register(&d, w, OP_OR, opcode == 0x08);
        break;
    case 0x80:
    case 0x81:
    case 0x83:
        done = decode_group1(&d, w, opcode);
        break;
    case 0xc6:
    case 0xc7:
        if (read_memory_operand(&d) && !(d.modrm & 0x38)) {
            w->operation = OP_MOV;
            done = with_immediate(&d, w, opcode == 0xc6, false);
        }
        break;
    case 0xab:
        *w = (struct write){.operation = OP_STOS, .size = operand_size(&d, false), .gpr = RAX,
                            .repeated = d.rep};
        done = w->size >= 4;
        break;
    case 0x0f:
        done = decode_two_byte(&d, w);
        break;
    }
    w->length = d.at;
    return done && d.at <= MAX_INSTRUCTION && (w->operation == OP_STOS || !d.rep);
}

static u64 logic_flags(u64 value, unsigned bits)
{
    u64 parity = __builtin_parity((unsigned)(value & 0xff)) ? 0 : FLAG_PF;
    return parity | (value ? 0 : FLAG_ZF) | (value >> (bits - 1) & 1 ? FLAG_SF : 0);
}

static u64 subtract_flags(u64 left, u64 right, unsigned bits, u64 mask)
{
    u64 value = (left - right) & mask;
    u64 flags = logic_flags(value, bits);
    if (right > left)
        flags |= FLAG_CF;
    if ((left ^ right ^ value) & 0x10)
        flags |= FLAG_AF;
    if ((left ^ right) & (left ^ value) & (1ull << (bits - 1)))
        flags |= FLAG_OF;
    return flags;
}

static void write_gpr(struct hot *h, int gpr, u64 value, unsigned size, u64 mask)
{
    h->env[gpr] = size >= 4 ? value : (h->env[gpr] & ~mask) | value;
}

/* What the instruction leaves behind. */
struct result {
    u64 value;
    bool stores;
    u64 flags_changed;
    u64 flags_set;
};

static struct result compute(const struct write *w, u64 old, u64 source, u64 rax, u64 mask)
{
    unsigned bits = 8 * w->size;
    u64 bit = 1ull << (source % bits);
    struct result r = {.value = source, .stores = true};
    switch (w->operation) {
    case OP_AND:
    case OP_OR:
        r.value = w->operation == OP_AND ? old & source : old | source;
        r.flags_changed = FLAGS_ARITHMETIC;
        r.flags_set = logic_flags(r.value, bits);
        break;
    case OP_BTS:
    case OP_BTR:
        r.value = w->operation == OP_BTS ? old | bit : old & ~bit;
        r.flags_changed = FLAG_CF;
        r.flags_set = old & bit ? FLAG_CF : 0;
        break;
    case OP_CMPXCHG:
        r.stores = old == rax;
        r.flags_changed = FLAGS_ARITHMETIC;
        r.flags_set = subtract_flags(rax, old, bits, mask);
        break;
    case OP_MOV:
    case OP_XCHG:
    case OP_STOS:
        break;
    }
    return r;
}

static bool execute(struct hot *h, const struct write *w, u64 maddr)
{
    u64 *env = h->env;
    u64 mask = w->size == 8 ? ~0ull : (1ull << 8 * w->size) - 1;
    unsigned shift = 8 * (maddr & 7);
    u64 *entry = maddr_to_word(h, maddr);
    u64 old = *entry >> shift & mask;
    u64 source = (w->gpr < 0 ? w->immediate : env[w->gpr]) & mask;
    struct result r = compute(w, old, source, env[RAX] & mask, mask);
    u64 wanted = (*entry & ~(mask << shift)) | r.value << shift;
    s64 error = 0;
    if (r.stores && (modify_entry(h, maddr & ~7ull, 1, wanted, false, &error) == SLOW || error))
        return false;
    /* COMMIT */
    if (w->operation == OP_XCHG)
        write_gpr(h, w->gpr, old, w->size, mask);
    else if (!r.stores)
        write_gpr(h, RAX, old, w->size, mask);
    if (r.flags_changed)
        set_flags(h, (get_flags(h) & ~r.flags_changed) | r.flags_set);
    bool again = false;
    if (w->operation == OP_STOS) {
        env[RDI] += w->size;
        again = w->repeated && --env[RCX];
    }
    if (!again)
        set_rip(h, get_rip(h) + w->length);
    count(h, DOM_COUNT_PAGE_TABLE_WRITE);
    return true;
}

enum page_table_write page_table_write(struct hot *h, u64 vaddr)
{
    u64 pte_at, maddr;
    struct write w = {0};
    u8 buffer[MAX_INSTRUCTION + 16] = {0};
    if (!entry_maddr(h, vaddr, &pte_at) || !translate(h, vaddr, false, &maddr))
        return WRITE_SLOW;
    /* A kernel's own mapping of a page table; a read-only user page is the guest's (COW). */
    if (*maddr_to_word(h, pte_at) & (PTE_RW | PTE_USER))
        return WRITE_GUESTS_FAULT;
    const u8 *code = guest_range(h, get_rip(h), MAX_INSTRUCTION, false);
    if (!code)
        return WRITE_SLOW;
    /* Copied once, with zeros behind it: the decoder may look a few bytes past the end. */
    memcpy(buffer, code, MAX_INSTRUCTION);
    if (!decode(buffer, &w) || (maddr & 7) + w.size > 8)
        return WRITE_SLOW;
    if (!is_guest_frame(h, maddr >> 12) || level_of(h, maddr >> 12) != 1 || h->domain[DOM_DYING])
        return WRITE_SLOW;
    begin_page_types();
    return execute(h, &w, maddr) ? WRITE_DONE : WRITE_SLOW;
}
