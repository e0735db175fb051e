"""A PV kernel of a hundred bytes: prints one text, then ends in the way that was asked for."""

from __future__ import annotations

import struct

from pyxen.abi import elfnote
from pyxen.abi.event_channel import EVTCHNOP_send
from pyxen.abi.io.console import XenconsInterface
from pyxen.abi.sched import SCHEDOP_poll, SCHEDOP_shutdown
from pyxen.abi.xen import StartInfo, StartInfoConsoleDomU

VIRT_BASE = 0xFFFF_FFFF_8000_0000
TEXT_PADDR = 0x10_0000
M2P = 0xFFFF_8000_0000_0000
EVENT_CHANNEL_OP, SCHED_OP, XEN_VERSION = 32, 29, 17
PAGE, SLOT = 4096, 32
CONSOLE = StartInfo.OFFSET["console"]
MFN, EVTCHN = (CONSOLE + StartInfoConsoleDomU.OFFSET[name] for name in ("mfn", "evtchn"))
OUT, OUT_PROD = XenconsInterface.OFFSET["out"], XenconsInterface.OFFSET["out_prod"]


def tiny_kernel(text: bytes, end: str, *, hypercall_page: bool = False) -> bytes:
    """An ELF file.

    end: "shutdown N", "sleep" (for ever), "spin", "call" (a hypercall again and again),
    "crash" (an invalid instruction).
    hypercall_page: make hypercalls by calls into the page that the hypervisor fills, as old
    kernels do.
    """
    code = _print(len(text)) + _end(end)
    if hypercall_page:
        code = _through_the_page(code)
    reason = int(end.split()[1]) if end.startswith("shutdown") else 0
    argument = struct.pack("<IIQQ", reason, 0, 0, 0)
    # The two pointers of the code are relative to it: the text and the argument lie behind.
    for name, behind in ((b"TEXT", 0), (b"WHY!", len(text))):
        at = code.find(name)
        code = code.replace(name, struct.pack("<i", len(code) + behind - at - 4))
    loaded = code + text + argument
    if not hypercall_page:
        return _elf(loaded)
    note = _note(
        elfnote.XEN_ELFNOTE_HYPERCALL_PAGE, struct.pack("<Q", VIRT_BASE + TEXT_PADDR + PAGE)
    )
    return _elf(loaded.ljust(2 * PAGE, b"\xcc"), note)


def _through_the_page(code: bytes) -> bytes:
    """Replace `mov eax, number; syscall` by a call of the number's place in the page."""
    for number in (EVENT_CHANNEL_OP, SCHED_OP):
        direct = b"\xb8" + struct.pack("<I", number) + b"\x0f\x05"
        while (at := code.find(direct)) >= 0:
            target = PAGE + number * SLOT - (at + 5)
            call = b"\xe8" + struct.pack("<i", target) + b"\x66\x90"  # call …; nop
            code = code[:at] + call + code[at + len(direct) :]
    return code


def _print(length: int) -> bytes:
    return b"".join(
        (
            b"\x48\x89\xf3",  # mov rbx, rsi: start_info
            b"\x48\x8b\x83" + struct.pack("<I", MFN),  # mov rax, [rbx + console.mfn]
            b"\x48\xb9" + struct.pack("<Q", M2P),  # mov rcx, M2P
            b"\x48\x8b\x04\xc1",  # mov rax, [rcx + rax * 8]
            b"\x48\xc1\xe0\x0c",  # shl rax, 12
            b"\x48\xb9" + struct.pack("<Q", VIRT_BASE),  # mov rcx, VIRT_BASE
            b"\x48\x01\xc8",  # add rax, rcx: the console page
            b"\x48\x8d\x35TEXT",  # lea rsi, [text]
            b"\x48\x8d\xb8" + struct.pack("<I", OUT),  # lea rdi, [rax + out]
            b"\xb9" + struct.pack("<I", length),  # mov ecx, length
            b"\xfc\xf3\xa4",  # cld; rep movsb
            b"\xc7\x80"
            + struct.pack("<II", OUT_PROD, length),  # mov dword [rax + out_prod], length
            b"\x48\x8d\xb3" + struct.pack("<I", EVTCHN),  # lea rsi, [rbx + console.evtchn]
            b"\xbf" + struct.pack("<I", EVTCHNOP_send),  # mov edi, EVTCHNOP_send
            b"\xb8" + struct.pack("<I", EVENT_CHANNEL_OP) + b"\x0f\x05",  # mov eax, …; syscall
        )
    )


def _end(end: str) -> bytes:
    if end in ("crash", "spin"):
        return {"crash": b"\x0f\x0b", "spin": b"\xeb\xfe"}[end]
    if end == "call":
        code = b"\x31\xff\xb8" + struct.pack("<I", XEN_VERSION) + b"\x0f\x05"  # xor edi, edi; …
        return code + b"\xeb" + struct.pack("b", -len(code) - 2)
    # A poll of no ports without a timeout sleeps, and does not look at what is masked.
    command = SCHEDOP_poll if end == "sleep" else SCHEDOP_shutdown
    code = b"\x48\x8d\x35WHY!"  # lea rsi, [argument]
    code += b"\xbf" + struct.pack("<I", command)  # mov edi, command
    code += b"\xb8" + struct.pack("<I", SCHED_OP) + b"\x0f\x05"  # mov eax, …; syscall
    return code + b"\xeb" + struct.pack("b", -len(code) - 2)  # again


def _note(kind: int, content: bytes) -> bytes:
    padded = content + bytes(-len(content) % 4)
    return struct.pack("<III", 4, len(content), kind) + b"Xen\0" + padded


def _elf(text: bytes, more_notes: bytes = b"") -> bytes:
    notes = b"".join(
        (
            _note(elfnote.XEN_ELFNOTE_XEN_VERSION, b"xen-3.0\0"),
            _note(elfnote.XEN_ELFNOTE_LOADER, b"generic\0"),
            _note(elfnote.XEN_ELFNOTE_GUEST_OS, b"tiny\0"),
            _note(elfnote.XEN_ELFNOTE_VIRT_BASE, struct.pack("<Q", VIRT_BASE)),
            _note(elfnote.XEN_ELFNOTE_PADDR_OFFSET, struct.pack("<Q", 0)),
            _note(elfnote.XEN_ELFNOTE_ENTRY, struct.pack("<Q", VIRT_BASE + TEXT_PADDR)),
            more_notes,
        )
    )
    at = 64 + 2 * 56
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack(
        "<HHIQQQIHHHHHH", 2, 62, 1, VIRT_BASE + TEXT_PADDR, 64, 0, 0, 64, 56, 2, 64, 0, 0
    )
    load = struct.pack(
        "<IIQQQQQQ", 1, 7, at, VIRT_BASE + TEXT_PADDR, TEXT_PADDR, len(text), len(text), 4096
    )
    note = struct.pack("<IIQQQQQQ", 4, 4, at + len(text), 0, 0, len(notes), len(notes), 4)
    return header + load + note + text + notes
