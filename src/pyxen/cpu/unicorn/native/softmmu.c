/* Cheaper slow paths of Unicorn's software TLB.
 *
 * Unicorn has no map of dirty pages. The first store to a page after its TLB entry was made goes
 * the long way, and so does every later one if the entry can also be executed: which is so wherever
 * a page table says no NX, on pages that never held code. A PV guest's early boot runs on such
 * tables. Stores there cost a hundred times what they should: a third of a boot.
 *
 * Here an entry that a load or a store makes is never both writable and executable (a fetch makes
 * it anew), and a byte a page of machine memory says whether code was translated from it:
 *
 *     0               no block comes from this page: stores to it may go the short way
 *     1 .. PATIENCE   blocks do; counts the stores since the last new block
 *
 * When a page gets its first block, all its entries, under whatever address, go back to the long
 * way, which finds and drops the blocks that a store changes. Unicorn itself looks at the address
 * that the code was fetched by only, so this is stricter. A page that is stored to PATIENCE times
 * while nothing new is translated from it loses its blocks and is data again.
 *
 * The rest is arithmetic where the library searches: all the guest's memory is one region at 0.
 *
 * The library calls its own exported functions through its linkage table; so the slots below are
 * pointed here. Only an engine that is in hot_run (`running`) sees a difference.
 */
#include "linkage.h"

#include "hot.h"

#define PAGE_BYTES 0x1000ull
#define PAGE_WRITE 2
#define PAGE_EXEC 4
#define PATIENCE 64
#define NO_PAGE (~0ull)
#define MMU_INST_FETCH 2

/* CPUTLBEntry, in 64-bit words. */
#define TLB_ADDR_WRITE 1
#define TLB_PADDR 3
#define TLB_ENTRY_BYTES 64
#define TLB_NOTDIRTY 0x400ull
#define TLB_NOT_PLAIN 0xe40ull /* invalid, MMIO, discarded, not dirty: as tlb_reset_dirty tests */

/* Before env: the three tables (mask, address), and the victims of each. */
#define FAST_TABLES_BEFORE_ENV 0x40
#define VICTIMS_BEFORE_ENV 0x840
#define VICTIMS 8

/* TranslationBlock.page_addr */
#define TB_PAGE_0 0x48
#define TB_PAGE_1 0x50

#define UC_TCG_CTX 0x300
#define CPU_TLB_FILL 0xa758

__thread struct hot *running;
static __thread bool fetching;     /* the fill that goes on is for a fetch */
static __thread u64 store_host_pc; /* where the block does the store that is on the long way */

typedef bool tlb_fill(void *cpu, u64 vaddr, int size, int access, int mode, bool probe, u64 ra);

static struct {
    tlb_fill *fill;
    void *(*block_at)(void *ctx, u64 host_pc);
    void (*invalidate_fast)(void *uc, void *pages, u64 start, int bytes, u64 host_pc);
    void (*set_page)(void *cpu, u64 vaddr, u64 paddr, u32 attrs, int prot, int mode, u64 bytes);
    u8 *(*gen_code)(void *cpu, u64 pc, u64 cs_base, u32 flags, int cflags);
    void (*set_dirty)(void *cpu, u64 vaddr);
    void (*reset_dirty)(void *cpu, u64 start, u64 bytes);
    void (*invalidate)(void *uc, u64 start, u64 end);
    u64 (*load_quad)(void *cpu, u64 paddr);
    u64 (*ram_addr)(void *uc, void *host);
    bool (*restore_state)(void *cpu, u64 host_pc, bool will_exit);
    void (*discard_all)(void *cpu);
    u8 *helper_syscall;
    bool installed;
} lib;

static u8 *table_of(const struct hot *h, int mode, u64 *mask)
{
    const u8 *fast = (const u8 *)h->env - FAST_TABLES_BEFORE_ENV + 16 * mode;
    *mask = load64(fast);
    return (u8 *)load64(fast + 8);
}

static void long_way(u64 *entry, u64 paddr)
{
    if (!(entry[TLB_ADDR_WRITE] & TLB_NOT_PLAIN) &&
        (entry[TLB_PADDR] & ~(PAGE_BYTES - 1)) == paddr)
        entry[TLB_ADDR_WRITE] |= TLB_NOTDIRTY;
}

/* All entries of a page, whatever their virtual address: rare, so a search. */
static void long_way_everywhere(const struct hot *h, u64 paddr)
{
    for (int mode = 0; mode < MMU_MODES; mode++) {
        u64 mask;
        u8 *table = table_of(h, mode, &mask);
        u8 *victims = (u8 *)h->env - VICTIMS_BEFORE_ENV + DESCRIPTOR_BYTES * mode;
        for (u64 at = 0; at <= mask; at += TLB_ENTRY_BYTES)
            long_way((u64 *)(table + at), paddr);
        for (int i = 0; i < VICTIMS; i++)
            long_way((u64 *)(victims + TLB_ENTRY_BYTES * i), paddr);
    }
}

static void long_way_if_code(const struct hot *h, u64 *entry)
{
    u64 paddr = entry[TLB_PADDR] & ~(PAGE_BYTES - 1);
    if (paddr < h->memory_bytes && h->code_pages[paddr / PAGE_BYTES])
        long_way(entry, paddr);
}

/* The entries of all pages that hold code: a vCPU has come back to its old TLB. */
void code_the_long_way(const struct hot *h)
{
    for (int mode = 0; mode < MMU_MODES; mode++) {
        u64 mask;
        u8 *table = table_of(h, mode, &mask);
        u8 *victims = (u8 *)h->env - VICTIMS_BEFORE_ENV + DESCRIPTOR_BYTES * mode;
        for (u64 at = 0; at <= mask; at += TLB_ENTRY_BYTES)
            long_way_if_code(h, (u64 *)(table + at));
        for (int i = 0; i < VICTIMS; i++)
            long_way_if_code(h, (u64 *)(victims + TLB_ENTRY_BYTES * i));
    }
}

static void holds_code(struct hot *h, u64 ram_addr)
{
    if (ram_addr == NO_PAGE || ram_addr >= h->memory_bytes)
        return;
    u8 *state = &h->code_pages[ram_addr / PAGE_BYTES];
    if (!*state) {
        long_way_everywhere(h, ram_addr & ~(PAGE_BYTES - 1));
        h->new_code++;
    }
    *state = 1;
}

static u8 *my_gen_code(void *cpu, u64 pc, u64 cs_base, u32 flags, int cflags)
{
    u8 *block = lib.gen_code(cpu, pc, cs_base, flags, cflags);
    if (running && block) {
        holds_code(running, load64(block + TB_PAGE_0));
        holds_code(running, load64(block + TB_PAGE_1));
    }
    return block;
}

static bool my_fill(void *cpu, u64 vaddr, int size, int access, int mode, bool probe, u64 ra)
{
    fetching = access == MMU_INST_FETCH;
    return lib.fill(cpu, vaddr, size, access, mode, probe, ra);
}

static void my_set_page(void *cpu, u64 vaddr, u64 paddr, u32 attrs, int prot, int mode, u64 bytes)
{
    if (running && (prot & PAGE_WRITE) && !fetching)
        prot &= ~PAGE_EXEC;
    lib.set_page(cpu, vaddr, paddr, attrs, prot, mode, bytes);
}

/* Drop the blocks that a store changes. */
static void my_invalidate_fast(void *uc, void *pages, u64 start, int bytes, u64 host_pc)
{
    store_host_pc = host_pc;
    if (running && start < running->memory_bytes && !running->code_pages[start / PAGE_BYTES])
        return;
    lib.invalidate_fast(uc, pages, start, bytes, host_pc);
}

/* The block that stores would run on to its end with whatever it changes in itself. */
static bool is_executing(const struct hot *h, u64 paddr)
{
    const u8 *block = NULL;
    if (store_host_pc)
        block = lib.block_at((void *)load64((u8 *)h->uc + UC_TCG_CTX), store_host_pc);
    return !block || (load64(block + TB_PAGE_0) & ~(PAGE_BYTES - 1)) == paddr ||
           (load64(block + TB_PAGE_1) & ~(PAGE_BYTES - 1)) == paddr;
}

/* After a store went the long way: may the next ones go the short one? */
static bool is_data(const struct hot *h, u64 paddr)
{
    if (paddr >= h->memory_bytes)
        return false;
    u8 *state = &h->code_pages[paddr / PAGE_BYTES];
    if (!*state)
        return true;
    if (*state < PATIENCE) {
        ++*state;
        return false;
    }
    if (is_executing(h, paddr)) {
        *state = 1;
        return false;
    }
    lib.invalidate(h->uc, paddr, paddr + PAGE_BYTES);
    *state = 0;
    return true;
}

static void my_set_dirty(void *cpu, u64 vaddr)
{
    if (!running) {
        lib.set_dirty(cpu, vaddr);
        return;
    }
    u64 page = vaddr & ~(PAGE_BYTES - 1);
    for (int mode = 0; mode < MMU_MODES; mode++) {
        u64 mask;
        u8 *table = table_of(running, mode, &mask);
        u64 *entry = (u64 *)(table + (page / (PAGE_BYTES / TLB_ENTRY_BYTES) & mask));
        if (entry[TLB_ADDR_WRITE] == (page | TLB_NOTDIRTY) &&
            is_data(running, entry[TLB_PADDR] & ~(PAGE_BYTES - 1)))
            entry[TLB_ADDR_WRITE] = page;
    }
}

/* holds_code does this work, for all addresses of the page. */
static void my_reset_dirty(void *cpu, u64 start, u64 bytes)
{
    if (!running)
        lib.reset_dirty(cpu, start, bytes);
}

/* The entries of page tables: four for every miss of the TLB. */
static u64 my_load_quad(void *cpu, u64 paddr)
{
    if (running && paddr < running->memory_bytes)
        return load64(running->memory + paddr);
    return lib.load_quad(cpu, paddr);
}

static u64 my_ram_addr(void *uc, void *host)
{
    if (running && (u64)((u8 *)host - running->memory) < running->memory_bytes)
        return (u64)((u8 *)host - running->memory);
    return lib.ram_addr(uc, host);
}

/* The translator has stored RIP and the flags before it calls helper_syscall; to search for the
 * block and to translate it again for the same result takes a quarter of a system call. */
static bool my_restore_state(void *cpu, u64 host_pc, bool will_exit)
{
    u64 offset = (u64)((u8 *)__builtin_return_address(0) - lib.helper_syscall);
    if (running && !will_exit && offset < 0xf7)
        return true;
    return lib.restore_state(cpu, host_pc, will_exit);
}

static void my_discard_all(void *cpu)
{
    if (running)
        running->discards++;
    lib.discard_all(cpu);
}

/* Called with a library whose build is known. NULL, or what is missing: then nothing is changed. */
const char *install_softmmu(const struct link_map *map, void *library)
{
    struct {
        void **original;
        void *mine;
        const char *name;
        void **slot;
    } wanted[] = {
        {(void **)&lib.set_page, (void *)my_set_page, "tlb_set_page_with_attrs_x86_64", NULL},
        {(void **)&lib.gen_code, (void *)my_gen_code, "tb_gen_code_x86_64", NULL},
        {(void **)&lib.invalidate_fast, (void *)my_invalidate_fast,
         "tb_invalidate_phys_page_fast_x86_64", NULL},
        {(void **)&lib.set_dirty, (void *)my_set_dirty, "tlb_set_dirty_x86_64", NULL},
        {(void **)&lib.reset_dirty, (void *)my_reset_dirty, "tlb_reset_dirty_by_vaddr_x86_64",
         NULL},
        {(void **)&lib.load_quad, (void *)my_load_quad, "x86_ldq_phys_x86_64", NULL},
        {(void **)&lib.ram_addr, (void *)my_ram_addr, "qemu_ram_addr_from_host_x86_64", NULL},
        {(void **)&lib.restore_state, (void *)my_restore_state, "cpu_restore_state_x86_64", NULL},
        {(void **)&lib.discard_all, (void *)my_discard_all, "tb_flush_x86_64", NULL},
    };
    size_t count = sizeof wanted / sizeof *wanted;
    lib.invalidate = dlsym(library, "tb_invalidate_phys_range_x86_64");
    lib.helper_syscall = dlsym(library, "helper_syscall_x86_64");
    lib.block_at = dlsym(library, "tcg_tb_lookup_x86_64");
    lib.fill = dlsym(library, "x86_cpu_tlb_fill_x86_64");
    if (!lib.invalidate || !lib.helper_syscall || !lib.block_at || !lib.fill)
        return "the library lacks a function of the software TLB";
    for (size_t i = 0; i < count; i++) {
        *wanted[i].original = dlsym(library, wanted[i].name);
        wanted[i].slot = find_slot(map, wanted[i].name);
        if (!*wanted[i].original || !wanted[i].slot)
            return "the library's linkage table is of another shape";
    }
    /* COMMIT */
    for (size_t i = 0; i < count; i++)
        *wanted[i].slot = wanted[i].mine;
    lib.installed = true;
    return NULL;
}

/* Prepare one engine. Its memory_bytes of 0 keeps it out of everything here. */
HOT_API bool hot_use_softmmu(struct hot *h, u64 memory_bytes)
{
    u8 *fill = (u8 *)h->cpu + CPU_TLB_FILL;
    if (!lib.installed || load64(fill) != (u64)lib.fill || lib.ram_addr(h->uc, h->memory) != 0)
        return false;
    h->memory_bytes = memory_bytes;
    store64(fill, (u64)my_fill);
    return true;
}
