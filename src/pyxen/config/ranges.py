"""Host resources given to a guest: `ioports`, `irqs`, `iomem`.

Source: xl.cfg(5).
"""

import re

from pyxen.config.devices import IomemRange, IoportRange
from pyxen.config.number import whole
from pyxen.errors import UserError

U32 = (1 << 32) - 1

_PORTS = re.compile("(?:0[xX])?([0-9a-fA-F]{1,16})(?:-(?:0[xX])?([0-9a-fA-F]{1,16}))?")
_FRAMES = re.compile(
    "(?:0[xX])?([0-9a-fA-F]{1,16}),(?:0[xX])?([0-9a-fA-F]{1,16})(?:@(?:0[xX])?([0-9a-fA-F]{1,16}))?"
)


def parse_ioports(spec: str) -> IoportRange:
    """Read "2f8-2ff" or "2f8". Raises: UserError (exit code 1)."""
    match = _PORTS.fullmatch(spec)
    first = int(match[1], 16) if match else -1
    last = int(match[2] or match[1], 16) if match else -1
    if not 0 <= first <= last < U32:
        hint = "write ports in hexadecimal, as in 2f8-2ff"
        raise UserError(f"ioports: {spec!r} is no range of ports", hint, 1)
    return IoportRange(first, last - first + 1)


def parse_irq(spec: str) -> int:
    """Read the number of an interrupt. Raises: UserError (exit code 1)."""
    irq = whole(spec, 10)
    if irq is None or not 0 <= irq < U32:
        raise UserError(f"irqs: {spec!r} is no interrupt number", "write a decimal number", 1)
    return irq


def parse_iomem(spec: str) -> IomemRange:
    """Read "f0000,1" or "f0000,1@a0000": frames in hexadecimal. Raises: UserError (exit 1)."""
    match = _FRAMES.fullmatch(spec)
    if match is None:
        hint = "write START,COUNT or START,COUNT@GUEST, page frames in hexadecimal"
        raise UserError(f"iomem: {spec!r} is no range of frames", hint, 1)
    gfn = int(match[3], 16) if match[3] else None
    return IomemRange(int(match[1], 16), int(match[2], 16), gfn)
