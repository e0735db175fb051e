"""`pyxen hypercalls`."""

from __future__ import annotations

import argparse


def run(given: argparse.Namespace) -> int:
    """Print the table that the hypervisor dispatches by."""
    from pyxen.hypervisor.hypercall.table import ROWS

    width = max(len(row.name) for row in ROWS)
    print(f"{'nr':>3}  {'hypercall':<{width}} {'support':<12} note")
    for row in sorted(ROWS, key=lambda row: row.number):
        print(f"{row.number:>3}  {row.name:<{width}} {row.support.value:<12} {row.note}".rstrip())
    return 0
