"""Exceptions of the processor: vectors and error codes.

Source: Intel SDM volume 3, chapter 6 (no public header of Xen has them).
"""

_HEADERS = ()

X86_EXC_DE = 0
X86_EXC_DB = 1
X86_EXC_NMI = 2
X86_EXC_BP = 3
X86_EXC_OF = 4
X86_EXC_BR = 5
X86_EXC_UD = 6
X86_EXC_NM = 7
X86_EXC_DF = 8
X86_EXC_TS = 10
X86_EXC_NP = 11
X86_EXC_SS = 12
X86_EXC_GP = 13
X86_EXC_PF = 14
X86_EXC_MF = 16
X86_EXC_AC = 17
X86_EXC_MC = 18
X86_EXC_XM = 19
X86_EXC_VE = 20
X86_EXC_CP = 21

X86_EXC_HAVE_EC = (
    1 << X86_EXC_DF
    | 1 << X86_EXC_TS
    | 1 << X86_EXC_NP
    | 1 << X86_EXC_SS
    | 1 << X86_EXC_GP
    | 1 << X86_EXC_PF
    | 1 << X86_EXC_AC
    | 1 << X86_EXC_CP
)
"""A bit for each vector that pushes an error code."""

# Error code of #PF.
PFEC_page_present = 1 << 0
PFEC_write_access = 1 << 1
PFEC_user_mode = 1 << 2
PFEC_reserved_bit = 1 << 3
PFEC_insn_fetch = 1 << 4

# Error code of #GP, #NP, #SS, #TS: a selector, or with X86_XEC_IDT a vector in bits 3-10.
X86_XEC_EXT = 1 << 0
X86_XEC_IDT = 1 << 1
X86_XEC_TI = 1 << 2

_NOT_IN_HEADER = {
    name: "processor architecture, not Xen's ABI"
    for name in tuple(globals())
    if not name.startswith("_")
}
