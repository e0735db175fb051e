"""Linux's bzImage: find the compressed kernel inside of it.

Source: Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import struct
from typing import Final

from pyxen.builder.failure import refuse

_BOOT_FLAG_AT: Final = 0x1FE
_HEADER_AT: Final = 0x202
_VERSION_AT: Final = 0x206
_SETUP_SECTS_AT: Final = 0x1F1
_PAYLOAD_AT: Final = 0x248
_PAYLOAD_SINCE: Final = 0x208


def is_bzimage(data: bytes) -> bool:
    """Whether the file has the header of a bzImage."""
    return data[_BOOT_FLAG_AT:_HEADER_AT] == b"\x55\xaa" + data[0x200:0x202] and (
        data[_HEADER_AT:_VERSION_AT] == b"HdrS"
    )


def payload(data: bytes, name: str) -> memoryview:
    """The compressed kernel: payload_offset bytes behind the protected-mode code's start.

    Raises: UserError for boot protocols before 2.08 and for truncated files.
    """
    if len(data) < _PAYLOAD_AT + 8:
        raise refuse(f"{name}: this bzImage is truncated inside of its header")
    (version,) = struct.unpack_from("<H", data, _VERSION_AT)
    if version < _PAYLOAD_SINCE:
        raise refuse(
            f"{name}: a bzImage of boot protocol {version >> 8}.{version & 0xFF:02} does not say "
            "where its payload is (that came with 2.08, Linux 2.6.25)",
            "use the kernel's vmlinux instead",
        )
    setup_sectors = data[_SETUP_SECTS_AT] or 4
    offset, length = struct.unpack_from("<II", data, _PAYLOAD_AT)
    start = (setup_sectors + 1) * 512 + offset
    if start + length > len(data):
        raise refuse(
            f"{name}: the bzImage is truncated: its payload would end at byte {start + length}, "
            f"the file ends at {len(data)}",
            "copy the kernel again, and compare its size with the original's",
        )
    return memoryview(data)[start : start + length]
