/* The check for a stop request at the start of each translated block, without the function call.
 *
 * Unicorn calls a helper there, which takes a fifth of the time. QEMU itself tests a word in line:
 *
 *     ld_i32 t, [env - 16]        the upper half of icount_decr is -1 when somebody wants a stop
 *     brcond lt t, 0 -> out
 *     ... the block ...
 *     out: exit_tb TB_EXIT_REQUESTED
 *
 * The library calls its own exported functions through its procedure linkage table, so two slots of
 * that table are pointed here. It needs no_exit_request (stops at block starts only), and exactly
 * the library that the constants were taken from: anything else, and nothing is changed. Other
 * users of the library in this process see no difference (exit_check_active is per thread).
 */
#include "linkage.h"

#include <elf.h>

#include "hot.h"

#define BUILD_ID "\x44\x28\x5d\x3e\x80\x52\x71\x22\xe9\xe3\x61\x92\x81\x89\x38\x59\x06\xec\x81\x3e"
#define BUILD_ID_BYTES 20
#define OP_SET_LABEL 1
#define OP_LD_I32 13
#define TCG_COND_LT 2
#define TCG_TYPE_I32 0
#define TB_EXIT_REQUESTED 3
#define OP_FIRST_ARGUMENT 3 /* of struct TCGOp, in words: behind the opcode and two links */
#define OP_WORDS 14
#define ICOUNT_DECR_FROM_ENV (-16)

__thread bool exit_check_active;

typedef void call_n(void *ctx, void *function, void *result, int n, void **args);
typedef void exit_tb(void *ctx, const void *tb, unsigned index);

static struct {
    call_n *call_n;
    exit_tb *exit_tb;
    void *check_exit_request;
    void *lookup_tb_ptr;
    void *(*new_label)(void *ctx);
    void (*brcondi_i32)(void *ctx, int condition, void *arg, s64 value, void *label);
    void (*op1)(void *ctx, int op, u64 a);
    void (*op3)(void *ctx, int op, u64 a, u64 b, u64 c);
    void *(*temp_new)(void *ctx, int type, int local);
    void (*temp_free)(void *ctx, void *temp);
    void *(*emit_op)(void *ctx, int op);
    bool installed;
} tcg;

/* Of the block that this thread is translating, and the temporary that stands for env. */
static __thread void *label;
static __thread void *known_ctx;
static __thread void *known_env;
static __thread u64 emitted;
static __thread u64 *last_op;

static void check_in_line(u8 *ctx)
{
    u8 *temp = tcg.temp_new(ctx, TCG_TYPE_I32, 0);
    label = tcg.new_label(ctx);
    tcg.op3(ctx, OP_LD_I32, (u64)temp, (u64)known_env, (u64)ICOUNT_DECR_FROM_ENV);
    tcg.brcondi_i32(ctx, TCG_COND_LT, (void *)(temp - ctx), 0, label);
    tcg.temp_free(ctx, temp);
    emitted++;
}

/* Far calls, far returns and IRET use the stack with a supervisor's rights, in user mode too: so a
 * user could write to the kernel. A stack of user mode is in the lower half, or it is a page fault.
 * The originals find out where they were called from by their return address: these must jump.
 */
#define LOWER_HALF_END (1ull << 47)
#define STACK_USE 64
#define PAGE_FAULT 14
#define FAULT_USER_PRESENT 5
#define FAULT_WRITE 2
#define GENERAL_PROTECTION 13
#define SEGMENT_SS 2

static struct {
    void (*lcall)(u64 *env, int cs, u64 rip, int shift, u64 next);
    void (*lret)(u64 *env, int shift, int addend);
    void (*iret)(u64 *env, int shift, int next);
    void (*load_seg)(u64 *env, int segment, int selector);
    void (*raise)(u64 *env, int vector, int error_code, u64 host_pc);
} far;

static bool is_kernels_stack(const u64 *env)
{
    bool user = (((const u32 *)env)[D_HFLAGS] & HF_CPL) == USER_CPL;
    bool long_mode = ((const u32 *)env)[D_HFLAGS] & HF_CS64;
    return user && long_mode && env[RSP] - STACK_USE >= LOWER_HALF_END - 2 * STACK_USE;
}

static void stack_fault(u64 *env, int write, void *host_pc)
{
    env[Q_CR2] = write ? env[RSP] - 8 : env[RSP];
    far.raise(env, PAGE_FAULT, FAULT_USER_PRESENT | write, (u64)host_pc);
}

static void my_lcall(u64 *env, int cs, u64 rip, int shift, u64 next)
{
    if (UNLIKELY(is_kernels_stack(env)))
        stack_fault(env, FAULT_WRITE, __builtin_return_address(0));
    far.lcall(env, cs, rip, shift, next);
}

static void my_lret(u64 *env, int shift, int addend)
{
    if (UNLIKELY(is_kernels_stack(env)))
        stack_fault(env, 0, __builtin_return_address(0));
    far.lret(env, shift, addend);
}

static void my_iret(u64 *env, int shift, int next)
{
    if (UNLIKELY(is_kernels_stack(env)))
        stack_fault(env, 0, __builtin_return_address(0));
    far.iret(env, shift, next);
}

/* SS says the privilege level, and a null selector says level 0, which is nobody's here. */
static void my_load_seg(u64 *env, int segment, int selector)
{
    if (UNLIKELY(segment == SEGMENT_SS && !(selector & 0xfffc)))
        far.raise(env, GENERAL_PROTECTION, 0, (u64)__builtin_return_address(0));
    far.load_seg(env, segment, selector);
}

static void *guarded(void *function)
{
    if (function == (void *)far.load_seg)
        return (void *)my_load_seg;
    if (function == (void *)far.lcall)
        return (void *)my_lcall;
    if (function == (void *)far.lret)
        return (void *)my_lret;
    return function == (void *)far.iret ? (void *)my_iret : function;
}

/* The translator knows its helpers by a table, so it is only told of the original: what it has put
 * down is changed afterwards. */
static void *my_emit_op(void *ctx, int op)
{
    last_op = tcg.emit_op(ctx, op);
    return last_op;
}

static void redirect(const void *from, const void *to)
{
    for (int i = OP_FIRST_ARGUMENT; i < OP_WORDS; i++)
        if (last_op[i] == (u64)from)
            last_op[i] = (u64)to;
}

static void my_call_n(void *ctx, void *function, void *result, int n, void **args)
{
    if (function == tcg.check_exit_request) {
        /* A new block begins. The last may have been given up in the middle, its label with it. */
        label = NULL;
        if (exit_check_active && known_ctx == ctx) {
            check_in_line(ctx);
            return;
        }
    } else if (exit_check_active && function == tcg.lookup_tb_ptr && n == 1) {
        /* This helper's only argument is env: that is how the temporary becomes known. */
        known_ctx = ctx;
        known_env = args[0];
    }
    tcg.call_n(ctx, function, result, n, args);
    if (exit_check_active && guarded(function) != function)
        redirect(function, guarded(function));
}

static void my_exit_tb(void *ctx, const void *tb, unsigned index)
{
    if (label && tb && index == TB_EXIT_REQUESTED) {
        *(u32 *)label |= 1; /* present */
        tcg.op1(ctx, OP_SET_LABEL, (u64)label);
        label = NULL;
    }
    tcg.exit_tb(ctx, tb, index);
}

static bool has_build_id(const struct dl_phdr_info *info)
{
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        if (segment->p_type != PT_NOTE || segment->p_memsz < sizeof(ElfW(Nhdr)))
            continue;
        const u8 *note = (const u8 *)(info->dlpi_addr + segment->p_vaddr);
        const ElfW(Nhdr) *head = (const ElfW(Nhdr) *)note;
        if (head->n_type == NT_GNU_BUILD_ID && head->n_namesz == 4 &&
            head->n_descsz == BUILD_ID_BYTES &&
            !memcmp(note + sizeof *head + 4, BUILD_ID, BUILD_ID_BYTES))
            return true;
    }
    return false;
}

struct search {
    const void *inside; /* an address in the library */
    bool right;
    ElfW(Addr) base;
};

static int find_library(struct dl_phdr_info *info, size_t size, void *data)
{
    struct search *s = data;
    (void)size;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *segment = &info->dlpi_phdr[i];
        ElfW(Addr) start = info->dlpi_addr + segment->p_vaddr;
        if (segment->p_type == PT_LOAD && (ElfW(Addr))s->inside - start < segment->p_memsz) {
            s->base = info->dlpi_addr;
            s->right = has_build_id(info);
            return 1;
        }
    }
    return 0;
}

/* The slot of the linkage table for a function; NULL unless there is exactly one. */
void **find_slot(const struct link_map *map, const char *name)
{
    const ElfW(Sym) *symbols = NULL;
    const ElfW(Rela) *relocations = NULL;
    const char *strings = NULL;
    size_t bytes = 0;
    for (const ElfW(Dyn) *d = map->l_ld; d->d_tag != DT_NULL; d++) {
        if (d->d_tag == DT_SYMTAB)
            symbols = (const void *)d->d_un.d_ptr;
        else if (d->d_tag == DT_STRTAB)
            strings = (const void *)d->d_un.d_ptr;
        else if (d->d_tag == DT_JMPREL)
            relocations = (const void *)d->d_un.d_ptr;
        else if (d->d_tag == DT_PLTRELSZ)
            bytes = d->d_un.d_val;
    }
    void **slot = NULL;
    if (!symbols || !strings || !relocations)
        return NULL;
    for (size_t i = 0; i < bytes / sizeof *relocations; i++) {
        const ElfW(Rela) *r = &relocations[i];
        if (ELF64_R_TYPE(r->r_info) != R_X86_64_JUMP_SLOT ||
            strcmp(strings + symbols[ELF64_R_SYM(r->r_info)].st_name, name))
            continue;
        if (slot)
            return NULL;
        slot = (void **)(map->l_addr + r->r_offset);
    }
    return slot;
}

static bool find_functions(void *library)
{
    struct {
        void **where;
        const char *name;
    } wanted[] = {
        {(void **)&tcg.call_n, "tcg_gen_callN_x86_64"},
        {(void **)&tcg.exit_tb, "tcg_gen_exit_tb_x86_64"},
        {&tcg.check_exit_request, "helper_check_exit_request_x86_64"},
        {&tcg.lookup_tb_ptr, "helper_lookup_tb_ptr_x86_64"},
        {(void **)&tcg.new_label, "gen_new_label_x86_64"},
        {(void **)&tcg.brcondi_i32, "tcg_gen_brcondi_i32_x86_64"},
        {(void **)&tcg.op1, "tcg_gen_op1_x86_64"},
        {(void **)&tcg.op3, "tcg_gen_op3_x86_64"},
        {(void **)&tcg.temp_new, "tcg_temp_new_internal_x86_64"},
        {(void **)&tcg.temp_free, "tcg_temp_free_internal_x86_64"},
        {(void **)&tcg.emit_op, "tcg_emit_op_x86_64"},
        {(void **)&far.lcall, "helper_lcall_protected_x86_64"},
        {(void **)&far.lret, "helper_lret_protected_x86_64"},
        {(void **)&far.iret, "helper_iret_protected_x86_64"},
        {(void **)&far.load_seg, "helper_load_seg_x86_64"},
        {(void **)&far.raise, "raise_exception_err_ra_x86_64"},
    };
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        *wanted[i].where = dlsym(library, wanted[i].name);
        if (!*wanted[i].where)
            return false;
    }
    return true;
}

/* Point the two slots here, once a process. NULL, or why not: then nothing was changed. */
HOT_API const char *hot_install_exit_check(const char *path)
{
    if (tcg.installed)
        return NULL;
    void *library = dlopen(path, RTLD_LAZY | RTLD_NOLOAD);
    struct link_map *map = NULL;
    if (!library || dlinfo(library, RTLD_DI_LINKMAP, &map) || !map)
        return "the library is not loaded";
    if (!find_functions(library))
        return "the library lacks a function of the translator";
    struct search search = {.inside = tcg.check_exit_request};
    dl_iterate_phdr(find_library, &search);
    if (!search.right || search.base != map->l_addr)
        return "the library is not the known build";
    void **call_slot = find_slot(map, "tcg_gen_callN_x86_64");
    void **exit_slot = find_slot(map, "tcg_gen_exit_tb_x86_64");
    void **emit_slot = find_slot(map, "tcg_emit_op_x86_64");
    if (!call_slot || !exit_slot || !emit_slot)
        return "the library's linkage table is of another shape";
    const char *refusal = install_softmmu(map, library);
    if (refusal)
        return refusal;
    /* COMMIT */
    *call_slot = (void *)my_call_n;
    *exit_slot = (void *)my_exit_tb;
    *emit_slot = (void *)my_emit_op;
    tcg.installed = true;
    return NULL;
}

/* How many blocks this thread translated with the check in line. */
HOT_API u64 hot_exit_checks(void)
{
    return emitted;
}
