"""The hypercall transfer page of a 64-bit PV guest.

Source: xen.h ("hypercall page": entry n is at n * 32 bytes) and the calling convention there:
RCX and R11, which `syscall` overwrites, are kept for the caller.
"""

from __future__ import annotations

import struct
from typing import Final

from pyxen.abi import xen as abi
from pyxen.types import PAGE_SIZE

SLOT_BYTES: Final = 32

_PUSH_RCX_R11: Final = b"\x51\x41\x53"
_PUSH_RAX: Final = b"\x50"
_MOV_EAX: Final = b"\xb8"
_SYSCALL: Final = b"\x0f\x05"
_POP_R11_RCX_RET: Final = b"\x41\x5b\x59\xc3"
_INT3: Final = b"\xcc"


def hypercall_page() -> bytes:
    """The 4096 bytes: one slot a hypercall number, 0 to 127.

    The slot of iret is jumped to and never returns; the frame it leaves for the hypervisor starts
    with RAX, R11 and RCX.
    """
    return b"".join(_slot(n).ljust(SLOT_BYTES, _INT3) for n in range(PAGE_SIZE // SLOT_BYTES))


def _slot(number: int) -> bytes:
    load = _MOV_EAX + struct.pack("<I", number)
    if number == abi.__HYPERVISOR_iret:
        return _PUSH_RCX_R11 + _PUSH_RAX + load + _SYSCALL
    return _PUSH_RCX_R11 + load + _SYSCALL + _POP_R11_RCX_RET
