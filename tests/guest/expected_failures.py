"""Cases that fail because pyxen is not there yet, by what is missing.

A case that passes in spite of standing here is reported as XPASS: take it out.
"""

from __future__ import annotations

_MISSING: dict[str, tuple[str, ...]] = {
    "engine without its native part: a null SS makes the kernel level 0": ("trap/null-ss",),
}
EXPECTED_FAILURES = {name: reason for reason, names in _MISSING.items() for name in names}
"""Name of the case -> what is missing."""
