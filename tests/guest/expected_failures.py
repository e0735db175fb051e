"""Cases that fail because pyxen is not there yet, by what is missing, and on which engines.

A case that passes in spite of standing here is a failure, too: take it out.
"""

from __future__ import annotations

_MISSING: dict[tuple[str, str], tuple[str, ...]] = {
    ("unicorn-python", "a null SS makes the kernel level 0"): ("trap/null-ss",),
}
EXPECTED_FAILURES = {
    (name, engine): reason for (engine, reason), names in _MISSING.items() for name in names
}
"""(name of the case, engine) -> what is missing."""
