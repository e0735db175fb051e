"""`pyxen hypercalls`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from pyxen.xend.client import Client

OTHERS = "(all others)"


def run(given: argparse.Namespace) -> int:
    """Print the table that the hypervisor dispatches by; of a domain, with what it called."""
    counted: dict[str, Any] | None = None
    if given.domain is not None:
        with Client.connect() as xend:
            counted = xend.call("hypercalls", domain=given.domain)
    rows = _rows(counted)
    native = counted.get("native", {}) if counted is not None else None
    if given.json:
        said: dict[str, Any] = {"hypercalls": rows}
        if counted is not None:
            said = {"domid": counted["domid"], "name": counted["name"], **said, "native": native}
        print(json.dumps(said, indent=2))
        return 0
    _print(rows, counts=counted is not None)
    if native is not None:
        print("\nDone by the native hot path (slow: what it left to Python):")
        for name, count in native.items():
            print(f"{name:<18} {count:>12}")
    return 0


def _rows(counted: dict[str, Any] | None) -> list[dict[str, Any]]:
    """One for each hypercall, and with counts one for all numbers that Xen does not have."""
    from pyxen.hypervisor.hypercall.table import ROWS

    rows: list[dict[str, Any]] = [
        {
            "number": row.number,
            "name": row.name,
            "support": row.support.value,
            "note": row.note,
        }
        for row in sorted(ROWS, key=lambda row: row.number)
    ]
    if counted is None:
        return rows
    calls, failures = counted.get("calls", []), counted.get("failures", [])
    rows.append({"number": None, "name": OTHERS, "support": "missing", "note": ""})
    known = {row["number"] for row in rows}
    for row in rows:
        number = row["number"]
        row["calls"] = _count(calls, number, known)
        row["failed"] = _count(failures, number, known)
    return rows


def _count(counters: list[int], number: int | None, known: set[int | None]) -> int:
    """Of one number; of all that have no row if it is None."""
    if number is None:
        return sum(count for at, count in enumerate(counters) if at not in known)
    return counters[number] if number < len(counters) else 0


def _print(rows: list[dict[str, Any]], *, counts: bool) -> None:
    width = max(len(row["name"]) for row in rows)
    columns = f"{'calls':>10} {'failed':>8}  " if counts else ""
    print(f"{'nr':>3}  {'hypercall':<{width}} {columns}{'support':<12} note")
    for row in rows:
        number = "" if row["number"] is None else row["number"]
        if counts:
            columns = f"{row['calls'] or '':>10} {row['failed'] or '':>8}  "
        line = f"{number:>3}  {row['name']:<{width}} {columns}{row['support']:<12} {row['note']}"
        print(line.rstrip())
