"""A page of machine code for what must not be done in Python.

Unicorn calls back for IN, OUT and CPUID, and goes on in the middle of a translated block
afterwards. To make the instruction fault instead, the callback has to leave by
longjmp, which may not cross Python's frames. Each of these is a handful of instructions, so they
are written down here; no compiler is needed. RDTSC is here because Python has no other way to it.

The callbacks get the address of CPUX86State (env) as their user data.

A kick is also taken here. uc_emu_stop from another thread sets stop_request at once, and from then
on the helpers of SYSCALL and CPUID skip callbacks: the instruction is stepped over and lost. So a
kick sets a word of this page and only makes the translator leave its inner loop, where it is
between two blocks; there, stop_request follows.

PAUSE makes the translator leave that loop, too. It is counted there: a vCPU that spins waits for
another one, which has no other thread to run on.
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


def _port_in(access: int) -> bytes:
    """uint32_t (uc=rdi, port=esi, size=edx, env=rcx): all ones, or #GP."""
    return (
        b"\x8b\x81" + pack("<I", layout.HFLAGS)  # mov eax, [rcx + hflags]
        + b"\x83\xe0\x03"  # and eax, 3
        + b"\x48\xbf" + pack("<Q", access)  # mov rdi, access
        + b"\x80\x3c\x07\x00"  # cmp byte [rdi + rax], 0
        + b"\x74\x06"  # je fault
        + b"\xb8\xff\xff\xff\xff"  # mov eax, -1
        + b"\xc3"  # ret
        + _general_protection(b"\x48\x89\xcf")  # fault: mov rdi, rcx; ...
    )  # fmt: skip


def _port_out(access: int) -> bytes:
    """void (uc=rdi, port=esi, size=edx, value=ecx, env=r8): nothing, or #GP."""
    return (
        b"\x41\x8b\x80" + pack("<I", layout.HFLAGS)  # mov eax, [r8 + hflags]
        + b"\x83\xe0\x03"  # and eax, 3
        + b"\x48\xbf" + pack("<Q", access)  # mov rdi, access
        + b"\x80\x3c\x07\x00"  # cmp byte [rdi + rax], 0
        + b"\x74\x01"  # je fault
        + b"\xc3"  # ret
        + _general_protection(b"\x4c\x89\xc7")  # fault: mov rdi, r8; ...
    )  # fmt: skip


def _cpuid(faulting: int) -> bytes:
    """int (uc=rdi, env=rsi): #GP in user mode while CPUID faulting is on; else 0, not done."""
    return (
        b"\x8b\x86" + pack("<I", layout.HFLAGS)  # mov eax, [rsi + hflags]
        + b"\xf7\xd0"  # not eax
        + b"\xa8\x03"  # test al, 3
        + b"\x75\x0f"  # jne kernel
        + b"\x48\xba" + pack("<Q", faulting)  # mov rdx, faulting
        + b"\x80\x3a\x00"  # cmp byte [rdx], 0
        + b"\x75\x03"  # jne fault
        + b"\x31\xc0"  # kernel: xor eax, eax
        + b"\xc3"  # ret
        + _general_protection(b"\x48\x89\xf7")  # fault: mov rdi, rsi; ...
    )  # fmt: skip


def _exec_exit(handle: int, kicked: int) -> bytes:
    """void (cpu=rdi): the inner loop was left; if somebody kicked, stop the run.

    Without a kick it was a PAUSE, or the run stops anyway. The pauses are counted down, and the
    last one stops the run.
    """
    return (
        b"\x48\xb8" + pack("<Q", kicked)  # mov rax, kicked
        + b"\x80\x38\x00"  # cmp byte [rax], 0
        + b"\x75\x05"  # jne stop
        + b"\xff\x48" + pack("b", _PAUSES_AT - _KICKED_AT)  # dec dword [rax + pauses]
        + b"\x75\x0d"  # jnz go_on
        # stop:
        + b"\x48\xb8" + pack("<Q", handle + layout.UC_STOP_REQUEST)  # mov rax, stop_request
        + b"\xc6\x00\x01"  # mov byte [rax], 1
        # go_on:
        + b"\x48\xb8" + pack("<Q", library.address("x86_cpu_exec_exit"))  # mov rax, ...
        + b"\xff\xe0"  # jmp rax
    )  # fmt: skip


_READ_TSC = (
    b"\x0f\x31"  # rdtsc
    b"\x48\xc1\xe2\x20"  # shl rdx, 32
    b"\x48\x09\xd0"  # or rax, rdx
    b"\xc3"  # ret
)


_KICKED_AT = 2048
_PAUSES_AT = _KICKED_AT + 8
_PORT_ACCESS_AT = _PAUSES_AT + 8
_CPUID_FAULTING_AT = _PORT_ACCESS_AT + 8
_KERNEL, _USER = 1, 3


class Stubs:
    """The machine code of one engine. Keep it alive as long as the engine."""

    def __init__(self, handle: int) -> None:
        page = mmap.mmap(
            -1,
            mmap.PAGESIZE,
            flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS,
            prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC,
        )
        base = ctypes.addressof(ctypes.c_char.from_buffer(page))
        routines = (
            _port_in(base + _PORT_ACCESS_AT),
            _port_out(base + _PORT_ACCESS_AT),
            _cpuid(base + _CPUID_FAULTING_AT),
            _exec_exit(handle, base + _KICKED_AT),
            _READ_TSC,
        )
        code = bytearray()
        offsets = []
        for routine in routines:
            offsets.append(len(code))
            code += routine + b"\xcc" * (-len(routine) % 16)
        page[: len(code)] = bytes(code)
        self._page = page
        self.port_in, self.port_out, self.cpuid, self.exec_exit, read_tsc = (
            base + offset for offset in offsets
        )
        self.kicked = ctypes.c_uint8.from_buffer(page, _KICKED_AT)
        """Not 0: the next time the inner loop is left, the run ends."""
        self.pauses_left = ctypes.c_uint32.from_buffer(page, _PAUSES_AT)
        """How many PAUSE instructions until the run ends."""
        self._port_access = (ctypes.c_uint8 * 4).from_buffer(page, _PORT_ACCESS_AT)
        self._cpuid_faulting = ctypes.c_uint8.from_buffer(page, _CPUID_FAULTING_AT)
        self.read_tsc = ctypes.CFUNCTYPE(ctypes.c_uint64)(read_tsc)
        """() -> the host's time stamp counter."""

    def allow(self, *, kernel_ports: bool, user_ports: bool, user_cpuid: bool) -> None:
        """What the guest's modes may do without #GP."""
        self._port_access[_KERNEL], self._port_access[_USER] = kernel_ports, user_ports
        self._cpuid_faulting.value = not user_cpuid
