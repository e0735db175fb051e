/* What Unicorn calls: try the hot path, else record why the guest stopped, and stop. */
#include "hot.h"

#define GENERAL_PROTECTION 13
#define PAGE_FAULT 14

static bool is_hot(const struct hot *h)
{
    return h->domain && h->vcpu && !h->exit_kind && !h->domain[DOM_SLOW_ONLY];
}

/* The first exit stays: stepping over SYSCALL raises #DB after it. */
static void record(struct hot *h, enum exit_kind kind)
{
    if (h->exit_kind)
        return;
    h->exit_kind = kind;
    if (h->domain)
        count(h, DOM_COUNT_SLOW);
    h->emu_stop(h->uc);
}

HOT_API void hot_on_syscall(void *uc, void *user_data)
{
    struct hot *h = user_data;
    (void)uc;
    bool user = user_mode(h);
    /* A step over a hypercall ends with #DB: exception.py. */
    if (is_hot(h) && (user || !(h->env[Q_EFLAGS] & FLAG_TF))) {
        h->skew = 2;
        bool done = user ? guest_syscall(h) : hypercall(h);
        if (done)
            deliver_events(h);
        h->skew = 0;
        if (done)
            return;
    }
    record(h, user ? EXIT_GUEST_SYSCALL : EXIT_HYPERCALL);
}

HOT_API void hot_on_sysenter(void *uc, void *user_data)
{
    (void)uc;
    record(user_data, EXIT_SYSENTER);
}

HOT_API void hot_on_exception(void *uc, u32 vector, void *user_data)
{
    struct hot *h = user_data;
    u32 *env_d = env32(h);
    (void)uc;
    /* Nobody else clears it, and a second fault would be taken for a double fault. */
    env_d[D_OLD_EXCEPTION] = (u32)-1;
    bool software = env_d[D_EXCEPTION_IS_INT] != 0;
    u64 error_code = env_d[D_ERROR_CODE], vaddr = h->env[Q_CR2];
    /* HF_STEP: the engine has to take back what it did for a watchpoint. */
    if (!software && is_hot(h) && !(env_d[D_HFLAGS] & HF_STEP)) {
        bool done = (vector == PAGE_FAULT && page_fault(h, error_code, vaddr)) ||
                    (vector == GENERAL_PROTECTION && !error_code && general_protection(h));
        if (done) {
            deliver_events(h);
            return;
        }
    }
    if (!h->exit_kind) {
        h->vector = vector;
        h->error_code = error_code;
        h->fault_address = vaddr;
        h->software = software;
    }
    record(h, EXIT_TRAP);
}

HOT_API bool hot_on_invalid_opcode(void *uc, void *user_data)
{
    struct hot *h = user_data;
    (void)uc;
    env32(h)[D_OLD_EXCEPTION] = (u32)-1;
    record(h, EXIT_INVALID_OPCODE);
    return true;
}

HOT_API int hot_run(struct hot *h)
{
    h->exit_kind = EXIT_NONE;
    exit_check_active = true;
    running = h->memory_bytes ? h : NULL;
    int error = h->emu_start(h->uc, h->env[Q_RIP], 0, 0, 0);
    exit_check_active = false;
    running = NULL;
    return error;
}

HOT_API size_t hot_struct_bytes(void)
{
    return sizeof(struct hot);
}
