"""Numbers as C's strtol reads them, because that is what a configuration means to xl."""

import re

LONG_MIN = -(1 << 63)
LONG_MAX = (1 << 63) - 1

_NUMBER = re.compile(r"[ \t\n\v\f\r]*([+-]?)(0[xX][0-9a-fA-F]+|[0-9]+)")
_DECIMAL = re.compile(r"[ \t\n\v\f\r]*([+-]?)([0-9]+)")
_HEXADECIMAL = re.compile(r"[ \t\n\v\f\r]*([+-]?)(?:0[xX])?([0-9a-fA-F]+)")
MAX_DIGITS = 32


def strtol(text: str, base: int = 0) -> tuple[int, str] | None:
    """Return the number at the start of `text` and the rest of it, or None if there is none.

    Base 0 knows 0x and a leading 0 for octal. The value is not limited to 64 bits; callers
    compare it with LONG_MIN and LONG_MAX.
    """
    pattern = {0: _NUMBER, 10: _DECIMAL, 16: _HEXADECIMAL}[base]
    match = pattern.match(text)
    if match is None:
        return None
    digits, end = match[2], match.end()
    if base == 0 and digits[:2] not in ("0x", "0X") and digits[0] == "0":
        octal = re.match("[0-7]+", digits)
        digits = octal[0] if octal else "0"
        end = match.start(2) + len(digits)
        base = 8
    elif base == 0 and digits[:2] in ("0x", "0X"):
        base = 16
    if len(digits) > MAX_DIGITS:
        return (-1 if match[1] == "-" else 1) << 64, text[end:]
    value = int(digits, base or 10)
    return (-value if match[1] == "-" else value), text[end:]


def whole(text: str, base: int = 0) -> int | None:
    """Return the number that `text` is as a whole, or None."""
    found = strtol(text, base)
    return found[0] if found and not found[1] and text.strip() else None


def leading(text: str, base: int = 0) -> int:
    """Return the number at the start of `text`, or 0, as C's atoi and unchecked strtoul do."""
    found = strtol(text, base)
    return found[0] if found else 0
