"""The `cpuid` setting: which CPU features a guest is shown.

Source: xl.cfg(5) "cpuid"; public/arch-x86/cpufeatureset.h (names and places of features).
A policy string has one character a bit, the highest bit first: "1" set, "0" clear, "x" the
default, "k" and "s" as on the host. As in xl, a bad word is reported and the rest still counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from pyxen.config.number import LONG_MAX, strtol
from pyxen.config.record import Record
from pyxen.config.report import nearest

MSR_ARCH_CAPABILITIES = 0x10A
U32 = (1 << 32) - 1

Place = tuple[int, int | None, str]
"""Leaf, subleaf (None where the leaf has none) and register."""

# "@n" says that the next name is that of bit n; the names that follow are of the next bits.
_FEATURE_BITS: dict[Place, str] = {
    (0x1, None, "edx"): (
        "fpu vme de pse tsc msr pae mce cx8 apic @11 sep mtrr pge mca cmov pat pse36 @19 "
        "clflush @21 ds acpi mmx fxsr sse sse2 ss htt tm1 @31 pbe"
    ),
    (0x1, None, "ecx"): (
        "sse3 pclmulqdq dtes64 monitor dscpl vmx smx eist tm2 ssse3 @12 fma cx16 xtpr pdcm "
        "@17 pcid dca sse4-1 sse4-2 x2apic movbe popcnt tsc-deadline aesni xsave osxsave avx "
        "f16c rdrand hypervisor"
    ),
    (0x80000001, None, "edx"): (
        "@11 syscall @20 nx @22 mmxext @25 ffxsr page1gb rdtscp @29 lm 3dnowext 3dnow"
    ),
    (0x80000001, None, "ecx"): (
        "lahf-lm cmp-legacy svm extapic cr8-legacy abm sse4a misalignsse 3dnowprefetch osvw "
        "ibs xop skinit wdt @15 lwp fma4 @19 nodeid-msr @21 tbm topoext @26 dbext @29 "
        "monitorx"
    ),
    (0xD, 1, "eax"): "xsaveopt xsavec xgetbv1 xsaves",
    (0x7, 0, "ebx"): (
        "fsgsbase tsc-adjust sgx bmi1 hle avx2 fdp-excp-only smep bmi2 erms invpcid rtm pqm "
        "no-fpu-sel mpx pqe avx512f avx512dq rdseed adx smap avx512-ifma @23 clflushopt clwb "
        "proc-trace avx512pf avx512er avx512cd sha avx512bw avx512vl"
    ),
    (0x7, 0, "ecx"): (
        "prefetchwt1 avx512-vbmi umip pku ospke @6 avx512-vbmi2 cet-ss gfni vaes vpclmulqdq "
        "avx512-vnni avx512-bitalg @14 avx512-vpopcntdq @22 rdpid @25 cldemote @27 movdiri "
        "movdir64b enqcmd"
    ),
    (0x80000007, None, "edx"): "@7 hw-pstate itsc cpb efro",
    (0x80000008, None, "ebx"): (
        "clzero @2 rstr-fp-err-ptrs @9 wbnoinvd @12 ibpb @14 ibrs amd-stibp ibrs-always "
        "stibp-always ibrs-fast ibrs-same-mode no-lmsl @23 amd-ppin amd-ssbd virt-ssbd ssb-no "
        "@28 psfd btc-no ibpb-ret"
    ),
    (0x7, 0, "edx"): (
        "@2 avx512-4vnniw avx512-4fmaps fsrm @8 avx512-vp2intersect srbds-ctrl md-clear "
        "rtm-always-abort @13 tsx-force-abort serialize hybrid tsxldtrk @20 cet-ibt @23 "
        "avx512-fp16 @26 ibrsb stibp l1d-flush arch-caps core-caps ssbd"
    ),
    (0x7, 1, "eax"): "@4 avx-vnni avx512-bf16 @10 fzrm fsrs fsrcs",
    (0x80000021, None, "eax"): (
        "@2 lfence-dispatch @5 verw-clear nscb @8 auto-ibrs @27 sbpb ibpb-brtype srso-no "
        "srso-us-no srso-msr-fix"
    ),
    (0x7, 1, "ebx"): "intel-ppin",
    (0x7, 2, "edx"): "intel-psfd ipred-ctrl rrsba-ctrl @4 bhi-ctrl mcdt-no",
    (0x7, 1, "edx"): "@18 cet-sss",
    (0x80000021, None, "ecx"): "@1 tsa-sq-no tsa-l1-no",
}
_ARCH_CAPABILITIES_BITS = (
    "rdcl-no eibrs rsba skip-l1dfl intel-ssb-no mds-no if-pschange-mc-no tsx-ctrl taa-no "
    "mcu-ctrl misc-pkg-ctrl energy-filtering doitm sbdr-ssdp-no fbsdp-no psdp-no @17 "
    "fb-clear fb-clear-ctrl rrsba bhi-no xapic-status @23 ovrclk-status pbrsb-no gds-ctrl "
    "gds-no rfds-no rfds-clear @62 its-no"
)

# Names that xl knows besides Xen's own: leaf, subleaf, register, lowest bit, bits.
_NAMED_FIELDS: dict[str, tuple[int, int | None, str, int, int]] = {
    "maxleaf": (0x0, None, "eax", 0, 32),
    "stepping": (0x1, None, "eax", 0, 4),
    "model": (0x1, None, "eax", 4, 8),
    "family": (0x1, None, "eax", 8, 8),
    "brandid": (0x1, None, "ebx", 0, 8),
    "clflush": (0x1, None, "ebx", 8, 8),
    "proccount": (0x1, None, "ebx", 16, 8),
    "localapicid": (0x1, None, "ebx", 24, 8),
    "est": (0x1, None, "ecx", 7, 1),
    "cntxid": (0x1, None, "ecx", 10, 1),
    "cmpxchg16": (0x1, None, "ecx", 13, 1),
    "sse4_1": (0x1, None, "ecx", 19, 1),
    "sse4.1": (0x1, None, "ecx", 19, 1),
    "sse4_2": (0x1, None, "ecx", 20, 1),
    "sse4.2": (0x1, None, "ecx", 20, 1),
    "aes": (0x1, None, "ecx", 25, 1),
    "cmpxchg8": (0x1, None, "edx", 8, 1),
    "sysenter": (0x1, None, "edx", 11, 1),
    "psn": (0x1, None, "edx", 18, 1),
    "clfsh": (0x1, None, "edx", 19, 1),
    "tm": (0x1, None, "edx", 29, 1),
    "ia64": (0x1, None, "edx", 30, 1),
    "pbe": (0x1, None, "edx", 31, 1),
    "procpkg": (0x4, 0, "eax", 26, 6),
    "arat": (0x6, None, "eax", 2, 1),
    "tsc_adjust": (0x7, 0, "ebx", 1, 1),
    "cmt": (0x7, 0, "ebx", 12, 1),
    "maxhvleaf": (0x40000000, None, "eax", 0, 8),
    "lahfsahf": (0x80000001, None, "ecx", 0, 1),
    "cmplegacy": (0x80000001, None, "ecx", 1, 1),
    "altmovcr8": (0x80000001, None, "ecx", 4, 1),
    "nodeid": (0x80000001, None, "ecx", 19, 1),
    "perfctr_core": (0x80000001, None, "ecx", 23, 1),
    "perfctr_nb": (0x80000001, None, "ecx", 24, 1),
    "invtsc": (0x80000007, None, "edx", 8, 1),
    "ppin": (0x80000008, None, "ebx", 23, 1),
    "btc-no": (0x80000008, None, "ebx", 29, 1),
    "nc": (0x80000008, None, "ecx", 0, 8),
    "apicidsize": (0x80000008, None, "ecx", 12, 4),
    "svm_npt": (0x8000000A, None, "edx", 0, 1),
    "svm_lbrv": (0x8000000A, None, "edx", 1, 1),
    "svm_nrips": (0x8000000A, None, "edx", 3, 1),
    "svm_tscrate": (0x8000000A, None, "edx", 4, 1),
    "svm_vmcbclean": (0x8000000A, None, "edx", 5, 1),
    "svm_decode": (0x8000000A, None, "edx", 7, 1),
    "svm_pausefilt": (0x8000000A, None, "edx", 10, 1),
    "lfence+": (0x80000021, None, "eax", 2, 1),
}


@dataclass
class CpuidLeaf(Record):
    """The policy for one CPUID leaf: a string of 32 characters a register, or None."""

    always: ClassVar[frozenset[str]] = frozenset({"leaf"})
    leaf: int = 0
    subleaf: int | None = None
    eax: str | None = None
    ebx: str | None = None
    ecx: str | None = None
    edx: str | None = None


@dataclass
class MsrPolicy(Record):
    """The policy for one model-specific register: a string of 64 characters."""

    always: ClassVar[frozenset[str]] = frozenset({"index"})
    index: int = 0
    policy: str = ""


@dataclass
class CpuidPolicy(Record):
    """All that a configuration says about CPUID leaves and feature MSRs."""

    always: ClassVar[frozenset[str]] = frozenset({"cpuid", "msr"})
    cpuid: list[CpuidLeaf] = field(default_factory=list)
    msr: list[MsrPolicy] = field(default_factory=list)

    def leaf(self, leaf: int, subleaf: int | None) -> CpuidLeaf:
        """Return the entry of a leaf, making it if need be."""
        for entry in self.cpuid:
            if (entry.leaf, entry.subleaf) == (leaf, subleaf):
                return entry
        self.cpuid.append(CpuidLeaf(leaf, subleaf))
        return self.cpuid[-1]


def parse_cpuid_words(text: str, warn: Callable[[str], None]) -> CpuidPolicy | None:
    """Read the form `cpuid="host,tm=0,sse3=k"`; None when it asks for nothing."""
    words = [word for word in text.split(",") if word]
    if not words:
        return None
    if words[0] != "host":
        warn(f"cpuid: the first word must be 'host', not {words[0]!r}; the setting is ignored")
        return None
    policy = CpuidPolicy()
    for word in words[1:]:
        problem = _apply_word(policy, word)
        if problem:
            warn(f"cpuid: {word!r} is ignored: {problem}")
    return policy if policy.cpuid or policy.msr else None


def parse_cpuid_leaves(lines: list[str], warn: Callable[[str], None]) -> CpuidPolicy | None:
    """Read the form `cpuid=["0x1:ecx=xxxx…,edx=…"]`; None when it asks for nothing."""
    policy = CpuidPolicy()
    for line in lines:
        problem = _apply_leaf(policy, line)
        if problem:
            warn(f"cpuid: {line!r} is ignored: {problem}")
    return policy if policy.cpuid else None


def _features() -> dict[str, tuple[Place, int]]:
    table: dict[str, tuple[Place, int]] = {}
    for place, names in _FEATURE_BITS.items():
        table.update((name, (place, bit)) for name, bit in _bits(names))
    return table


def _bits(names: str) -> list[tuple[str, int]]:
    bit, found = 0, []
    for name in names.split():
        if name[0] == "@":
            bit = int(name[1:])
        else:
            found.append((name, bit))
            bit += 1
    return found


def _apply_word(policy: CpuidPolicy, word: str) -> str:
    name, equals, value = word.partition("=")
    if not equals:
        return "'=' is missing; write for instance tm=0"
    if name in _NAMED_FIELDS:
        return _set_field(policy, name, _NAMED_FIELDS[name], value)
    features = _features()
    if name in features:
        (leaf, subleaf, register), bit = features[name]
        return _set_field(policy, name, (leaf, subleaf, register, bit, 1), value)
    capabilities = dict(_bits(_ARCH_CAPABILITIES_BITS))
    if name in capabilities:
        return _set_msr_bit(policy, capabilities[name], value)
    known = (*_NAMED_FIELDS, *features, *capabilities)
    return f"there is no CPUID flag {name!r}" + nearest(name, known)


def _set_field(
    policy: CpuidPolicy, name: str, place: tuple[int, int | None, str, int, int], value: str
) -> str:
    leaf, subleaf, register, bit, length = place
    number = strtol(value)
    if number is not None:
        flags = format(number[0] & ((1 << length) - 1), f"0{length}b")
    elif value[:1] in ("x", "k", "s"):
        flags = value[0] * length
    else:
        return "the value must be a number, x, k or s"
    # COMMIT
    entry = policy.leaf(leaf, subleaf)
    bits = list(getattr(entry, register) or "x" * 32)
    if name == "family":
        _set_family(bits, flags, number[0] if number else 0)
    elif name == "model":
        # Its upper half is the extended model, bits 16 to 19.
        bits[12:16], bits[24:28] = flags[:4], flags[4:]
    else:
        bits[32 - bit - length : 32 - bit] = flags
    setattr(entry, register, "".join(bits))
    return ""


def _set_family(bits: list[str], flags: str, number: int) -> None:
    # From 15 on, the family is 15 plus the extended family in bits 20 to 27.
    if number < 16:
        bits[20:24], bits[4:12] = flags[4:], "0" * 8
    else:
        bits[20:24], bits[4:12] = "1111", format((number - 15) & 0xFF, "08b")


def _set_msr_bit(policy: CpuidPolicy, bit: int, value: str) -> str:
    if value not in ("0", "1", "x", "k", "s"):
        return "the value must be 0, 1, x or k"
    # COMMIT
    if not policy.msr:
        policy.msr.append(MsrPolicy(MSR_ARCH_CAPABILITIES, "x" * 64))
    bits = list(policy.msr[0].policy)
    bits[63 - bit] = "k" if value == "s" else value
    policy.msr[0].policy = "".join(bits)
    return ""


def _apply_leaf(policy: CpuidPolicy, line: str) -> str:
    head, colon, registers = line.partition(":")
    leaf_text, comma, subleaf_text = head.partition(",")
    leaf, subleaf = strtol(leaf_text), strtol(subleaf_text)
    if leaf is None or leaf[1] or leaf[0] > LONG_MAX:
        return "the leaf must be a number"
    if comma and (subleaf is None or subleaf[1]):
        return "the subleaf must be a number"
    if not colon:
        return "':' is missing between leaf and registers"
    entry = policy.leaf(leaf[0] & U32, subleaf[0] & U32 if comma and subleaf else None)
    for part in registers.split(","):
        name, equals, value = part.strip(" \n").partition("=")
        if not name and not equals:
            continue
        if name not in ("eax", "ebx", "ecx", "edx") or not equals:
            return f"{name!r} is no register; there are eax, ebx, ecx and edx"
        if len(value) != 32:
            return f"the policy for {name} has {len(value)} characters and needs 32"
        setattr(entry, name, value)
    return ""
