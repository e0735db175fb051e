"""A page of machine code for what must not be done in Python.

Unicorn calls back for IN, OUT and SYSENTER, and goes on in the middle of a translated block
afterwards. To make the instruction fault instead, the callback has to leave by
longjmp, which may not cross Python's frames. Each of these is a handful of instructions, so they
are written down here; no compiler is needed. RDTSC is here because Python has no other way to it.

The callbacks get the address of CPUX86State (env) as their user data.
"""

from __future__ import annotations

import ctypes
import mmap
from struct import pack

from pyxen.cpu.unicorn import layout, library

GENERAL_PROTECTION = 13


def _general_protection(env_to_rdi: bytes) -> bytes:
    """Leave the callback with #GP(0); env is moved to RDI by the given instruction."""
    return (
        env_to_rdi
        + b"\xbe" + pack("<I", GENERAL_PROTECTION)  # mov esi, 13
        + b"\x31\xd2"  # xor edx, edx
        + b"\x48\xb8" + pack("<Q", library.address("raise_exception_err"))  # mov rax, ...
        + b"\xff\xe0"  # jmp rax
    )  # fmt: skip


def _port_in() -> bytes:
    """uint32_t (uc=rdi, port=esi, size=edx, env=rcx): all ones, or #GP in user mode."""
    fault = _general_protection(b"\x48\x89\xcf")  # mov rdi, rcx
    return (
        b"\x8b\x81" + pack("<I", layout.HFLAGS)  # mov eax, [rcx + hflags]
        + b"\x83\xe0\x03"  # and eax, 3
        + b"\x83\xf8\x03"  # cmp eax, 3
        + b"\x74\x06"  # je fault
        + b"\xb8\xff\xff\xff\xff"  # mov eax, -1
        + b"\xc3"  # ret
        + fault
    )  # fmt: skip


def _port_out() -> bytes:
    """void (uc=rdi, port=esi, size=edx, value=ecx, env=r8): nothing, or #GP in user mode."""
    fault = _general_protection(b"\x4c\x89\xc7")  # mov rdi, r8
    return (
        b"\x41\x8b\x80" + pack("<I", layout.HFLAGS)  # mov eax, [r8 + hflags]
        + b"\x83\xe0\x03"  # and eax, 3
        + b"\x83\xf8\x03"  # cmp eax, 3
        + b"\x74\x01"  # je fault
        + b"\xc3"  # ret
        + fault
    )  # fmt: skip


def _sysenter() -> bytes:
    """void (uc=rdi, env=rsi): #GP(0), as with a zero SYSENTER_CS."""
    return _general_protection(b"\x48\x89\xf7")  # mov rdi, rsi


_READ_TSC = (
    b"\x0f\x31"  # rdtsc
    b"\x48\xc1\xe2\x20"  # shl rdx, 32
    b"\x48\x09\xd0"  # or rax, rdx
    b"\xc3"  # ret
)


class Stubs:
    """The machine code of this process. Keep it alive as long as any engine that uses it."""

    def __init__(self) -> None:
        code = bytearray()
        offsets = []
        for routine in (_port_in(), _port_out(), _sysenter(), _READ_TSC):
            offsets.append(len(code))
            code += routine + b"\xcc" * (-len(routine) % 16)
        page = mmap.mmap(
            -1,
            mmap.PAGESIZE,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )
        page[: len(code)] = bytes(code)
        self._page = page
        base = ctypes.addressof(ctypes.c_char.from_buffer(page))
        self.port_in, self.port_out, self.sysenter, read_tsc = (base + offset for offset in offsets)
        self.read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(read_tsc)
        """() -> the host's time stamp counter."""
