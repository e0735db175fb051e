"""The crash report: all that helps to find out why a guest died, in one text.

Made once, when the domain crashes, from state that the guest controls: everything is bounded, and
what cannot be read is left out.
"""

from __future__ import annotations

import traceback
from pathlib import Path

from pyxen.builder.kernel import unpack
from pyxen.builder.symbols import SymbolTable, find_symbols, system_map_beside
from pyxen.errors import DomainCrash
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall import decode

STACK_WORDS = 512
STACK_LINES = 32
CONSOLE_LINES = 40
_KERNEL_HALF = 0xFFFF_8000_0000_0000


def report(domain: Domain, kernel: Path, console_tail: bytes) -> str:
    """The whole report, ready to print."""
    symbols = _symbols(kernel)
    parts = [
        _headline(domain),
        _registers(domain, symbols),
        _stack(domain, symbols),
        _hypercalls(domain),
        _text("The end of the console", console_tail) or "The console is empty.",
        _text("Said to the hypervisor's console", domain.last_words),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _symbols(kernel: Path) -> SymbolTable | None:
    try:
        image, _ = unpack(kernel.read_bytes(), str(kernel))
        return find_symbols(image, system_map_beside(kernel))
    except Exception:  # whatever happened to the file meanwhile, a report without names is better
        return None


def _headline(domain: Domain) -> str:
    cause = domain.crash_cause
    lines = [f"Domain {domain.domid} ({domain.spec.name}) crashed."]
    if cause is None:
        lines.append("The guest asked for it (SHUTDOWN_crash); its console says why.")
    elif isinstance(cause, DomainCrash):
        lines.append(f"Cause: {cause}")
    else:
        lines.append(f"Cause: a bug in pyxen, please report it: {cause!r}")
        lines += [line.rstrip() for line in traceback.format_exception(cause)]
    return "\n".join(lines)


def _name(symbols: SymbolTable | None, address: int) -> str:
    symbol = symbols.lookup(address) if symbols else None
    return f"{symbol}" if symbol else ""


def _registers(domain: Domain, symbols: SymbolTable | None) -> str:
    regs = domain.engine.regs
    mode = "user" if domain.engine.user_mode else "kernel"
    rows = (
        ("rip", "rsp", "rflags"),
        ("rax", "rbx", "rcx"),
        ("rdx", "rsi", "rdi"),
        ("rbp", "r8", "r9"),
        ("r10", "r11", "r12"),
        ("r13", "r14", "r15"),
        ("fs_base", "gs_base", "cr2"),
    )
    lines = [
        f"vCPU {domain.current.vcpu_id}, guest {mode} mode, {_name(symbols, regs.rip)}".rstrip(", ")
    ]
    for row in rows:
        lines.append("  ".join(f"{name:>7} {getattr(regs, name):016x}" for name in row))
    vcpu = domain.current
    lines.append(
        f"    cr3 {vcpu.pv.cr3:016x}  upcall pending {int(vcpu.upcall_pending)} "
        f"masked {vcpu.upcall_mask}"
    )
    return "\n".join(lines)


def _stack(domain: Domain, symbols: SymbolTable | None) -> str:
    """What looks like return addresses on the kernel's stack, with names where there are any."""
    if domain.engine.user_mode:
        return ""
    stack = domain.engine.regs.rsp & ~7
    lines: list[str] = []
    for n in range(STACK_WORDS):
        raw = domain.space.try_read(stack + 8 * n, 8)
        if raw is None or len(lines) >= STACK_LINES:
            break
        word = int.from_bytes(raw, "little")
        symbol = symbols.lookup(word) if symbols and word >= _KERNEL_HALF else None
        name = str(symbol) if symbol and symbol.code else ""
        if name or (symbols is None and word >= 0xFFFF_FFFF_8000_0000):
            lines.append(f"  {8 * n:4x}  {word:016x}  {name}".rstrip())
    source = f" (names from {symbols.source})" if symbols else ""
    return f"Kernel stack{source}, words that may be return addresses:\n" + "\n".join(lines)


def _hypercalls(domain: Domain) -> str:
    records = domain.pv.recent_hypercalls()
    if not records:
        return "No hypercalls were made."
    lines = [f"  {decode.describe(r.number, r.args, r.result)}" for r in records]
    return f"The last {len(lines)} hypercalls, oldest first:\n" + "\n".join(lines)


def _text(title: str, data: bytes) -> str:
    """What the guest wrote, made safe to print; empty if it wrote nothing."""
    lines = data.decode("utf-8", "replace").replace("\r", "").rstrip("\n").split("\n")
    lines = [
        "".join(c if c.isprintable() or c == "\t" else "?" for c in line)
        for line in lines[-CONSOLE_LINES:]
    ]
    if lines == [""]:
        return ""
    return f"{title}:\n" + "\n".join(f"  {line}" for line in lines)
