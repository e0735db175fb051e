/* Where things are in Unicorn 2.1.4's CPUX86State, and values in it.
 * The same numbers as in ../layout.py, which proves them at start-up. Indices of 64-bit words (Q_)
 * and of 32-bit words (D_).
 */
#ifndef PYXEN_LAYOUT_H
#define PYXEN_LAYOUT_H

#include <stdint.h>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef uint64_t u64;
typedef int64_t s64;

enum { RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8, R9, R10, R11 };

enum {
    Q_RIP = 16,
    Q_EFLAGS = 17,
    Q_CC_DST = 18,
    Q_CC_SRC = 19,
    Q_CC_SRC2 = 20,
    Q_FS_BASE = 36,
    Q_GS_BASE = 39,
    Q_GDT_BASE = 48,
    Q_CR0 = 53,
    Q_CR2 = 55,
    Q_CR3 = 56,
    Q_DR7 = 5400 / 8 + 7,
};

enum {
    D_CC_OP = 42,
    D_DF = 43,
    D_HFLAGS = 44,
    D_CS = 52,
    D_SS = 58,
    D_GS = 76,
    D_SEGMENT_LIMIT = 4,
    D_SEGMENT_FLAGS = 5,
    D_ERROR_CODE = 5384 / 4,
    D_EXCEPTION_IS_INT = 5388 / 4,
    D_OLD_EXCEPTION = 5496 / 4,
};

enum { CC_OP_EFLAGS = 1 };

#define HF_CPL 3u
#define HF_STEP (1u << 8)
#define HF_CS32 (1u << 4)
#define HF_SS32 (1u << 5)
#define HF_ADDSEG (1u << 6)
#define HF_LMA (1u << 14)
#define HF_CS64 (1u << 15)

#define KERNEL_CPL 1u
#define USER_CPL 3u
#define KERNEL_CS 0xe041u
#define KERNEL_SS 0xe049u
#define FLAT_LIMIT 0xffffffffu
#define CODE_64 0x00a09b00u /* G, L, P, S, code, readable, accessed */
#define DATA_FLAT 0x00c09300u /* G, B, P, S, data, writable, accessed */
#define DPL_SHIFT 13

/* RFLAGS */
#define FLAG_CF (1u << 0)
#define FLAG_ONE (1u << 1)
#define FLAG_PF (1u << 2)
#define FLAG_AF (1u << 4)
#define FLAG_ZF (1u << 6)
#define FLAG_SF (1u << 7)
#define FLAG_TF (1u << 8)
#define FLAG_IF (1u << 9)
#define FLAG_DF (1u << 10)
#define FLAG_OF (1u << 11)
#define FLAG_IOPL (3u << 12)
#define FLAG_NT (1u << 14)
#define FLAG_RF (1u << 16)
#define FLAG_VM (1u << 17)
#define FLAG_AC (1u << 18)
#define FLAGS_ARITHMETIC (FLAG_CF | FLAG_PF | FLAG_AF | FLAG_ZF | FLAG_SF | FLAG_OF)
#define FLAGS_GUEST 0x244dd5u /* what a guest may have as it likes: ../layout.py */

#endif
