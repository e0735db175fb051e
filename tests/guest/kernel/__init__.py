"""The kernel that all cases are in: assembled and linked once, each case chosen by its address."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from pyxen import abi
from pyxen.abi import (
    arch_x86,
    callback,
    elfnote,
    errno,
    event_channel,
    grant_table,
    memory,
    nmi,
    physdev,
    sched,
    vcpu,
    version,
    xen,
)
from pyxen.abi.io.console import XenconsInterface
from pyxen.memory import pagetable

from ..case import Case

HERE = Path(__file__).parent
VIRT_BASE = 0xFFFF_FFFF_8000_0000
_MODULES = (
    *(arch_x86, callback, event_channel, grant_table, memory, nmi, physdev, sched, vcpu, version),
    *(xen, pagetable, abi),
)
_OWN = {
    "VIRT_BASE": VIRT_BASE,
    "MACH2PHYS_VIRT_START": 0xFFFF_8000_0000_0000,
    "HYPERVISOR_VIRT_START": pagetable.XEN_VIRT_START,
    "HYPERVISOR_VIRT_END": pagetable.XEN_VIRT_END,
    "NON_CANONICAL": 0x0000_8000_0000_0000,
    "NOT_MAPPED": 0xFFFF_FFFF_9000_0000,
    "PAGE_RW": 0x63,
    "PAGE_RO": 0x61,
    "PAGE_USER_RW": 0x67,
    "TABLE_RW": 0x67,
    "NO_FRAME": 0xF_FFFF_FFFF,
    "VCPU_MASK": xen.VcpuInfo.OFFSET["evtchn_upcall_mask"],
    "VCPU_PENDING_SEL": xen.VcpuInfo.OFFSET["evtchn_pending_sel"],
    "VCPU_CR2": xen.VcpuInfo.OFFSET["arch"],
    "VCPU_TIME": xen.VcpuInfo.OFFSET["time"],
    "EVTCHN_PENDING": xen.SharedInfo.OFFSET["evtchn_pending"],
    "EVTCHN_MASK": xen.SharedInfo.OFFSET["evtchn_mask"],
    "START_MFN_LIST": xen.StartInfo.OFFSET["mfn_list"],
    "START_PT_BASE": xen.StartInfo.OFFSET["pt_base"],
    "START_SHARED_INFO": xen.StartInfo.OFFSET["shared_info"],
    "START_CONSOLE_MFN": xen.StartInfo.OFFSET["console"] + xen.StartInfoConsoleDomU.OFFSET["mfn"],
    "START_CONSOLE_EVTCHN": xen.StartInfo.OFFSET["console"]
    + xen.StartInfoConsoleDomU.OFFSET["evtchn"],
    "CONSOLE_OUT": XenconsInterface.OFFSET["out"],
    "CONSOLE_OUT_PROD": XenconsInterface.OFFSET["out_prod"],
}
_CONTEXT = arch_x86.VcpuGuestContext.OFFSET
_REGISTERS = {
    f"CTX_{name.upper()}": _CONTEXT["user_regs"] + arch_x86.CpuUserRegs.OFFSET[name]
    for name in ("rip", "rsp", "rdi", "cs", "ss", "ds", "es", "rflags")
}
_OWN |= _REGISTERS | {
    "CTX_FLAGS": _CONTEXT["flags"],
    "CTX_CR3": _CONTEXT["ctrlreg"] + 3 * 8,
    "CTX_LDT_BASE": _CONTEXT["ldt_base"],
    "CTX_LDT_ENTS": _CONTEXT["ldt_ents"],
    "CTX_KERNEL_SS": _CONTEXT["kernel_ss"],
    "CTX_KERNEL_SP": _CONTEXT["kernel_sp"],
    "CTX_EVENT": _CONTEXT["event_callback_eip"],
    "CTX_FAILSAFE": _CONTEXT["failsafe_callback_eip"],
}
_NOTES = f"""
.macro note type, words:vararg
    .long   4, 2f-1f, \\type
    .asciz  "Xen"
1:  \\words
2:  .balign 4
.endm
.section .notes, "a", @note
    note {elfnote.XEN_ELFNOTE_XEN_VERSION}, .asciz "xen-3.0"
    note {elfnote.XEN_ELFNOTE_LOADER}, .asciz "generic"
    note {elfnote.XEN_ELFNOTE_GUEST_OS}, .asciz "cases"
    note {elfnote.XEN_ELFNOTE_VIRT_BASE}, .quad VIRT_BASE
    note {elfnote.XEN_ELFNOTE_PADDR_OFFSET}, .quad 0
    note {elfnote.XEN_ELFNOTE_ENTRY}, .quad start
"""


@dataclass(frozen=True, slots=True)
class CaseKernel:
    """The ELF file, its symbols, and the symbol of each case's code."""

    path: Path
    symbols: dict[str, int]
    labels: dict[str, str]


def why_not() -> str:
    """Why kernels cannot be assembled here; empty if they can."""
    missing = [tool for tool in ("as", "ld", "nm") if shutil.which(tool) is None]
    return f"no {', '.join(missing)}: install binutils" if missing else ""


def assemble(cases: Iterable[Case], folder: Path) -> CaseKernel:
    """One kernel with the code of all cases. Raises: RuntimeError with the assembler's words."""
    labels = {case.name: f"case{n}" for n, case in enumerate(cases)}
    body = "\n".join(_source_of(case, labels[case.name]) for case in cases)
    macros, runtime = ((HERE / name).read_text() for name in ("macros.s", "runtime.s"))
    text = macros + runtime + _NOTES + body
    source, code, kernel = (folder / f"cases.{kind}" for kind in ("s", "o", "elf"))
    source.write_text(constants(text) + text)
    _tool("as", "--64", "-o", str(code), str(source))
    _tool("ld", "-n", "-T", str(HERE / "kernel.lds"), "-o", str(kernel), str(code))
    symbols = {}
    for line in _tool("nm", str(kernel)).splitlines():
        address, _, name = line.split()
        symbols[name] = int(address, 16)
    return CaseKernel(kernel, symbols, labels)


def constants(text: str) -> str:
    """Definitions of the constants that occur in a text."""
    known = dict(_OWN)
    for module in _MODULES:
        known |= {k: v for k, v in vars(module).items() if isinstance(v, int) and k not in known}
    known |= {f"XEN_E{error.name}": error.value for error in errno.E}
    used = sorted(set(re.findall(r"\w+", text)) & known.keys())
    used += [f"__HYPERVISOR_{n}" for n in re.findall(r"(?:hypercall|result_of)\s+(\w+)", text)]
    return "".join(
        f".set {name}, {known[name]:#x}\n" for name in dict.fromkeys(used) if name in known
    )


def _source_of(case: Case, label: str) -> str:
    parts = (
        (".text", f".globl {label}\n{label}:\n{case.code}\n    jmp case_end"),
        (".data", case.data),
        (".user", case.user),
    )
    text = "".join(f"\n.section {section}\n.balign 8\n{part}\n" for section, part in parts if part)
    return re.sub(
        r"@(\w+)", rf".L{label}_\1", text.replace(".section .user\n", '.section .user, "awx"\n')
    )


def _tool(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout}{done.stderr}")
    return done.stdout
