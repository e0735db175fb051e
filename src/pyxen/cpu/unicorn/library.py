"""The functions of libunicorn that the engine calls, through ctypes.

The Python binding is not imported: it would add its own objects between us and the callbacks, and
40 ms to the start of a domain. Names with the suffix of the x86 target are internal functions of
the translator that the library exports.
"""

from __future__ import annotations

import ctypes
import importlib.util
import platform
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any, Final

from pyxen.errors import UserError

ARCH_X86: Final = 4
MODE_64: Final = 8
PROT_ALL: Final = 7

HOOK_INTR: Final = 1 << 0
HOOK_INSN: Final = 1 << 1
HOOK_INSN_INVALID: Final = 1 << 14
INS_CPUID: Final = 113
INS_IN: Final = 218
INS_OUT: Final = 500
INS_SYSCALL: Final = 699
INS_SYSENTER: Final = 700

REG_EFLAGS: Final = 25
REG_RAX: Final = 35
REG_RIP: Final = 41
REG_CR0: Final = 50
REG_CR2: Final = 52
REG_CR3: Final = 53
REG_CR4: Final = 54
REG_DR0: Final = 66
REG_R15: Final = 113
REG_XMM0: Final = 122
REG_FPCW: Final = 246
REG_MXCSR: Final = 249
REG_FS_BASE: Final = 250
REG_GS_BASE: Final = 251

CTL_WRITE_1: Final = (1 << 26) | (1 << 30)
CTL_USE_EXITS: Final = 4
CTL_CPU_MODEL: Final = 7
CTL_TCG_BUFFER_SIZE: Final = 13
CPU_HASWELL: Final = 19

INTR_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)
INSN_CALLBACK = ctypes.CFUNCTYPE(None, c_void_p, c_void_p)
CPUID_CALLBACK = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
INVALID_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_bool, c_void_p, c_void_p)

_PROTOTYPES: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "uc_version": (c_uint32, (c_void_p, c_void_p)),
    "uc_open": (c_int, (c_int, c_int, c_void_p)),
    "uc_close": (c_int, (c_void_p,)),
    "uc_strerror": (ctypes.c_char_p, (c_int,)),
    "uc_mem_map_ptr": (c_int, (c_void_p, c_uint64, c_uint64, c_uint32, c_void_p)),
    "uc_reg_read": (c_int, (c_void_p, c_int, c_void_p)),
    "uc_reg_write": (c_int, (c_void_p, c_int, c_void_p)),
    "uc_emu_start": (c_int, (c_void_p, c_uint64, c_uint64, c_uint64, c_size_t)),
    "uc_emu_stop": (c_int, (c_void_p,)),
    "cpu_exit": (None, (c_void_p,)),
    "tlb_flush_x86_64": (None, (c_void_p,)),
    "tlb_flush_page_x86_64": (None, (c_void_p, c_uint64)),
    "cpu_breakpoint_insert_x86_64": (c_int, (c_void_p, c_uint64, c_int, c_void_p)),
    "cpu_breakpoint_remove_all_x86_64": (None, (c_void_p, c_int)),
    "tb_invalidate_phys_range_x86_64": (None, (c_void_p, c_uint64, c_uint64)),
    "update_fp_status_x86_64": (None, (c_void_p,)),
    "update_mxcsr_status_x86_64": (None, (c_void_p,)),
}


def path() -> Path:
    """Where the library of the installed unicorn package is. Raises: UserError."""
    if platform.machine() != "x86_64" or platform.system() != "Linux":
        raise UserError(f"the Unicorn engine runs on x86-64 Linux, not on {platform.machine()}")
    spec = importlib.util.find_spec("unicorn")
    for directory in (spec.submodule_search_locations or ()) if spec else ():
        candidate = Path(directory) / "lib" / "libunicorn.so.2"
        if candidate.exists():
            return candidate
    raise UserError("the Unicorn library is not installed", hint="pip install unicorn==2.1.4")


@cache
def load() -> ctypes.CDLL:
    """The library, with the prototypes of everything used here. Raises: UserError."""
    lib = ctypes.CDLL(str(path()))
    for name, (result, arguments) in _PROTOTYPES.items():
        try:
            function = getattr(lib, name)
        except AttributeError:
            raise UserError(
                f"the installed Unicorn library has no {name}", hint="pip install unicorn==2.1.4"
            ) from None
        function.restype = result
        function.argtypes = arguments
    return lib


def address(name: str) -> int:
    """Host address of one of the x86 target's internal functions."""
    return ctypes.cast(getattr(load(), f"{name}_x86_64"), c_void_p).value or 0


def version() -> tuple[int, int, int]:
    """(major, minor, patch) as the library says."""
    combined: int = load().uc_version(None, None)
    return combined >> 24, combined >> 16 & 0xFF, combined >> 8 & 0xFF


def check(error: int, what: str) -> None:
    """Turn an error of a set-up call into an exception: none is expected."""
    if error:
        raise RuntimeError(f"{what}: {strerror(error)}")


def strerror(error: int) -> str:
    """Unicorn's words for one of its error numbers."""
    text: bytes = load().uc_strerror(error)
    return text.decode()


def reg_read(handle: int, register: int, buffer: Any) -> None:
    """uc_reg_read into a ctypes buffer."""
    check(load().uc_reg_read(handle, register, buffer), f"reading register {register}")


def reg_write(handle: int, register: int, buffer: Any) -> None:
    """uc_reg_write from a ctypes buffer."""
    check(load().uc_reg_write(handle, register, buffer), f"writing register {register}")


def emu_stop(handle: int) -> None:
    """uc_emu_stop."""
    load().uc_emu_stop(handle)


def ctl_write(handle: int, control: int, value: int) -> None:
    """uc_ctl with one integer argument."""
    function = load().uc_ctl
    error = function(c_void_p(handle), c_uint32(control | CTL_WRITE_1), c_uint32(value))
    check(error, f"uc_ctl {control}")


def hook_add(handle: int, kind: int, callback: int, user_data: int, *extra: int) -> int:
    """uc_hook_add over all addresses. `callback` is the address of a C function."""
    hook = c_size_t(0)
    error = load().uc_hook_add(
        c_void_p(handle),
        ctypes.byref(hook),
        c_int(kind),
        c_void_p(callback),
        c_void_p(user_data),
        c_uint64(1),
        c_uint64(0),
        *(c_int(value) for value in extra),
    )
    check(error, f"uc_hook_add {kind}")
    return hook.value
