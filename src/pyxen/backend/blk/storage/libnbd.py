"""libnbd, as far as it is used here: one connection to an NBD server, without ever waiting.

The C library is opened through ctypes; its Python module is built for Debian's own Python only, and
PyPI has none (docs/design/009-image-formats.md). Source: libnbd(3).

Calls that do not wait keep the interpreter's lock: letting it go costs more than they do.
"""

from __future__ import annotations

import ctypes
import os
import socket
import time
from collections.abc import Callable, Iterator
from errno import EIO, ENOTCONN, ETIMEDOUT
from functools import cache
from typing import Final

from pyxen.errors import UserError

_SONAME: Final = "libnbd.so.0"
MAX_TRANSFER_BYTES: Final = 32 << 20
"""What every server must take in one command (the protocol's default maximum)."""
MAX_TRIM_BYTES: Final = 1 << 30
_MINIMUM, _PREFERRED = 0, 1
_READ, _WRITE = 1, 2
_POLL_MS: Final = 1000


class _NoCallback(ctypes.Structure):
    """nbd_completion_callback, passed by value: results are asked for, not told."""

    _fields_ = (
        ("callback", ctypes.c_void_p),
        ("user_data", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


_NONE: Final = _NoCallback(None, None, None)
_HANDLE = ctypes.c_void_p
_U64, _U32, _INT, _SIZE, _BUFFER = (
    ctypes.c_uint64,
    ctypes.c_uint32,
    ctypes.c_int,
    ctypes.c_size_t,
    ctypes.c_void_p,
)

_SIGNATURES: Final[dict[str, tuple[type | None, tuple[type, ...]]]] = {
    "nbd_create": (_HANDLE, ()),
    "nbd_close": (None, (_HANDLE,)),
    "nbd_get_error": (ctypes.c_char_p, ()),
    "nbd_get_errno": (_INT, ()),
    "nbd_is_read_only": (_INT, (_HANDLE,)),
    "nbd_can_trim": (_INT, (_HANDLE,)),
    "nbd_get_size": (ctypes.c_int64, (_HANDLE,)),
    "nbd_get_block_size": (ctypes.c_int64, (_HANDLE, _INT)),
    "nbd_aio_connect_socket": (_INT, (_HANDLE, _INT)),
    "nbd_aio_disconnect": (_INT, (_HANDLE, _U32)),
    "nbd_aio_pread": (ctypes.c_int64, (_HANDLE, _BUFFER, _SIZE, _U64, _NoCallback, _U32)),
    "nbd_aio_pwrite": (ctypes.c_int64, (_HANDLE, _BUFFER, _SIZE, _U64, _NoCallback, _U32)),
    "nbd_aio_flush": (ctypes.c_int64, (_HANDLE, _NoCallback, _U32)),
    "nbd_aio_trim": (ctypes.c_int64, (_HANDLE, _U64, _U64, _NoCallback, _U32)),
    "nbd_aio_get_direction": (ctypes.c_uint, (_HANDLE,)),
    "nbd_aio_notify_read": (_INT, (_HANDLE,)),
    "nbd_aio_notify_write": (_INT, (_HANDLE,)),
    "nbd_aio_is_ready": (_INT, (_HANDLE,)),
    "nbd_aio_is_dead": (_INT, (_HANDLE,)),
    "nbd_aio_is_closed": (_INT, (_HANDLE,)),
    "nbd_aio_peek_command_completed": (ctypes.c_int64, (_HANDLE,)),
    "nbd_aio_command_completed": (_INT, (_HANDLE, _U64)),
}


@cache
def load() -> ctypes.CDLL:
    """The library. Raises: UserError naming Debian's package if it is not installed."""
    try:
        library = ctypes.PyDLL(_SONAME)
    except OSError:
        raise UserError(
            "the library libnbd.so.0 is not installed; images that are not raw need it",
            "as root: apt install libnbd0",
        ) from None
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


@cache
def _poll() -> Callable[[object, int], int]:
    """nbd_poll: the one that waits, so that it lets other threads run."""
    function = ctypes.CDLL(_SONAME).nbd_poll
    function.restype, function.argtypes = _INT, (_HANDLE, _INT)
    return function


class NbdError(OSError):
    """What libnbd says, with an errno."""


class Connection:
    """A connection that has been negotiated. Of one thread at a time."""

    def __init__(self, sock: socket.socket, timeout_s: float) -> None:
        """Take over a connected socket, and negotiate.

        Waits, at most `timeout_s`. Raises: NbdError; UserError without libnbd.
        """
        self._socket = sock
        self._handle = None
        try:
            self._lib = load()
            self._handle = self._lib.nbd_create()
            # libnbd closes its own as soon as the connection ends, while ours may be waited on.
            self._check(self._lib.nbd_aio_connect_socket(self._handle, os.dup(sock.fileno())))
            self._negotiate(time.monotonic() + timeout_s)
            self.size = self._check(self._lib.nbd_get_size(self._handle))
            self.read_only = bool(self._lib.nbd_is_read_only(self._handle))
            self.can_trim = self._lib.nbd_can_trim(self._handle) == 1
            self.minimum_block = self._check(self._lib.nbd_get_block_size(self._handle, _MINIMUM))
            self.preferred_block = self._check(
                self._lib.nbd_get_block_size(self._handle, _PREFERRED)
            )
        except BaseException:
            self.close()
            raise

    def _negotiate(self, deadline_s: float) -> None:
        while not self._lib.nbd_aio_is_ready(self._handle):
            if self.is_over:
                raise NbdError(ENOTCONN, "the server closed the connection")
            if time.monotonic() > deadline_s:
                raise NbdError(ETIMEDOUT, "the server does not answer")
            self._check(_poll()(self._handle, _POLL_MS))

    # --- events -----------------------------------------------------------------------------

    def fileno(self) -> int:
        """What to wait on."""
        return self._socket.fileno()

    @property
    def wants_read(self) -> bool:
        """Whether to call `progress` when it can be read from."""
        return bool(self._lib.nbd_aio_get_direction(self._handle) & _READ)

    @property
    def wants_write(self) -> bool:
        """Whether to call `progress` when it can be written to."""
        return bool(self._lib.nbd_aio_get_direction(self._handle) & _WRITE)

    @property
    def is_over(self) -> bool:
        """Whether the connection ended, however."""
        lib = self._lib
        return bool(lib.nbd_aio_is_dead(self._handle) or lib.nbd_aio_is_closed(self._handle))

    def progress(self, *, readable: bool, writable: bool) -> None:
        """Move data. What went wrong shows in `is_over` and `completed`."""
        if readable and self.wants_read:
            self._lib.nbd_aio_notify_read(self._handle)
        elif writable and self.wants_write:
            self._lib.nbd_aio_notify_write(self._handle)

    def wait(self, timeout_ms: int) -> None:
        """Wait until data can be moved, and move it."""
        _poll()(self._handle, timeout_ms)

    # --- commands ---------------------------------------------------------------------------

    def read(self, address: int, length: int, offset: int) -> int:
        """Begin to read into memory that stays until the command ends; returns its cookie."""
        return self._check(self._lib.nbd_aio_pread(self._handle, address, length, offset, _NONE, 0))

    def write(self, address: int, length: int, offset: int) -> int:
        """Begin to write from memory that stays until the command ends."""
        return self._check(
            self._lib.nbd_aio_pwrite(self._handle, address, length, offset, _NONE, 0)
        )

    def flush(self) -> int:
        """Begin to flush what was written by commands that have ended."""
        return self._check(self._lib.nbd_aio_flush(self._handle, _NONE, 0))

    def trim(self, length: int, offset: int) -> int:
        """Begin to discard."""
        return self._check(self._lib.nbd_aio_trim(self._handle, length, offset, _NONE, 0))

    def completed(self) -> Iterator[tuple[int, int]]:
        """Commands that have ended: cookie, and 0 or an errno. If the connection is over: all."""
        while (cookie := self._lib.nbd_aio_peek_command_completed(self._handle)) > 0:
            failed = self._lib.nbd_aio_command_completed(self._handle, cookie) < 0
            yield cookie, (self._lib.nbd_get_errno() or EIO) if failed else 0

    def disconnect(self) -> None:
        """Tell the server that nothing more will come. Nothing may be under way."""
        self._lib.nbd_aio_disconnect(self._handle, 0)

    def close(self) -> None:
        """Close the connection, and forget commands under way; buffers are not touched again."""
        if self._handle:
            self._lib.nbd_close(self._handle)
            self._handle = None
        self._socket.close()

    def _check(self, result: int) -> int:
        if result < 0:
            errno = self._lib.nbd_get_errno() or EIO
            raise NbdError(errno, self._words() or os.strerror(errno))
        return result

    def _words(self) -> str:
        text: bytes | int | None = self._lib.nbd_get_error()
        return text.decode(errors="replace") if isinstance(text, bytes) else ""
