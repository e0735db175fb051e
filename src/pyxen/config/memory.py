"""Amounts of memory on the command line: the argument of `xl mem-set` and `xl mem-max`.

Source: xl(1) "mem-set": MiB, or a number with b, k, m, g or t behind it.
"""

from pyxen.config.number import LONG_MAX, strtol
from pyxen.errors import UserError

_KIB = {"k": 1, "": 1 << 10, "m": 1 << 10, "g": 1 << 20, "t": 1 << 30}


def parse_memory_kib(text: str) -> int:
    """Return an amount of memory in KiB: "256" and "256m" are 262144.

    Raises: UserError (exit code 1).
    """
    found = strtol(text, 10)
    number, unit = (found[0], found[1].lower()) if found else (-1, "")
    if number < 0 or unit not in (*_KIB, "b"):
        hint = "write MiB, or a number with k, m, g or t behind it, as in 512m or 2g"
        raise UserError(f"{text!r} is no amount of memory", hint, 1)
    kib = number >> 10 if unit == "b" else number * _KIB[unit]
    if kib > LONG_MAX >> 10:
        raise UserError(f"{text} is more memory than there can be", "", 1)
    return kib
