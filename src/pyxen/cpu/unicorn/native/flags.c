/* RFLAGS inside of a callback: the translator keeps the arithmetic flags apart, and lazily. */
#include "hot.h"

u64 get_flags(const struct hot *h)
{
    const u64 *env = h->env;
    const u32 *env_d = env32(h);
    u64 arithmetic = env[Q_CC_SRC];
    if (env_d[D_CC_OP] != CC_OP_EFLAGS)
        arithmetic = h->compute_flags(env[Q_CC_DST], env[Q_CC_SRC], env[Q_CC_SRC2],
                                      (int)env_d[D_CC_OP]);
    u64 direction = (int32_t)env_d[D_DF] < 0 ? FLAG_DF : 0;
    return (env[Q_EFLAGS] & 0xffffffff & ~(u64)(FLAGS_ARITHMETIC | FLAG_DF)) |
           (arithmetic & FLAGS_ARITHMETIC) | direction | FLAG_ONE;
}

void set_flags(struct hot *h, u64 flags)
{
    h->env[Q_CC_SRC] = flags & FLAGS_ARITHMETIC;
    env32(h)[D_CC_OP] = CC_OP_EFLAGS;
    env32(h)[D_DF] = flags & FLAG_DF ? (u32)-1 : 1;
    h->env[Q_EFLAGS] = (flags & FLAGS_GUEST & ~(u64)(FLAGS_ARITHMETIC | FLAG_DF)) | FLAG_IF |
                       FLAG_ONE;
}
