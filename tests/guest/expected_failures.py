"""Cases that fail because pyxen is not there yet: name (or group/*) -> what is missing.

A case that passes in spite of standing here is reported as XPASS: take its line out.
"""

from __future__ import annotations

EXPECTED_FAILURES: dict[str, str] = {}


def reason_for(name: str) -> str:
    """Why this case may fail; empty if it may not."""
    return EXPECTED_FAILURES.get(name, "")
