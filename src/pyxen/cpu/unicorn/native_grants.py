"""Uses of grants by the host in C: native/grants.c, reached through ctypes."""

from __future__ import annotations

import ctypes
from array import array
from typing import Final

from pyxen.cpu.base import GrantPath
from pyxen.cpu.pvstate import PvGrants

_REF_BYTES: Final = 4


class NativeGrants(GrantPath):
    """The functions of a native library that was found to be of this version."""

    def __init__(self, path: str) -> None:
        # Microseconds at most: not worth giving the interpreter to another thread.
        library = ctypes.PyDLL(path)
        arguments = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_bool)
        self._begin, self._end = library.hot_begin_grants, library.hot_end_grants
        for function in (self._begin, self._end):
            function.argtypes = arguments
            function.restype = ctypes.c_uint64

    def begin(self, grants: PvGrants, refs: array[int], done: int, *, write: bool) -> int:
        address, count = refs.buffer_info()
        result: int = self._begin(grants.address, address + done * _REF_BYTES, count - done, write)
        return done + result

    def end(self, grants: PvGrants, refs: array[int], done: int, *, write: bool) -> int:
        address, count = refs.buffer_info()
        result: int = self._end(grants.address, address + done * _REF_BYTES, count - done, write)
        return done + result
