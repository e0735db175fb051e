"""Medians, ratios, and the two forms in which they are kept: a table and JSON."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

from bench.measure import Run
from bench.metrics import METRICS, Metric

FORMAT = 1
Summary: TypeAlias = dict[str, dict[str, dict[str, float]]]
"""metric → peer → median, min, max, count, and ratio where QEMU has the metric too."""


def summarise(runs: Iterable[Run], base: str) -> Summary:
    """Bring the runs together; `base` is the peer that ratios refer to, unless a metric says."""
    found: dict[str, dict[str, list[float]]] = {}
    for run in runs:
        for name, value in run.values.items():
            found.setdefault(name, {}).setdefault(run.peer, []).append(value)
    summary: Summary = {}
    for name, metric in METRICS.items():
        peers = found.get(name, {})
        summary[name] = {peer: _spread(values) for peer, values in peers.items()}
        for peer, spread in summary[name].items():
            reference = (
                found.get(metric.against, {}).get(peer) if metric.against else peers.get(base)
            )
            if reference and (median := statistics.median(reference)):
                spread["ratio"] = spread["median"] / median
    return summary


def _spread(values: list[float]) -> dict[str, float]:
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "count": len(values),
    }


def table(summary: Summary, peers: list[str], base: str) -> str:
    """The medians as a Markdown table, with the range in brackets and the ratio to `base`."""
    head = ["", "unit", *peers, "target"]
    rows = [head, ["---"] * len(head)]
    for name, metric in METRICS.items():
        found = summary.get(name, {})
        if found:
            cells = [_cell(found.get(peer), with_ratio=peer != base) for peer in peers]
            rows.append([metric.title, metric.unit, *cells, _target(metric, found)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = []
    for row in rows:
        fill = "-" if row[0] == "---" else " "
        padded = [cell.ljust(width, fill) for cell, width in zip(row, widths, strict=True)]
        lines.append(f"| {' | '.join(padded)} |")
    return "\n".join(lines)


def _cell(spread: dict[str, float] | None, *, with_ratio: bool) -> str:
    if spread is None:
        return ""
    text = f"{_number(spread['median'])}"
    if spread["count"] > 1:
        text += f" ({_number(spread['min'])}-{_number(spread['max'])})"
    if with_ratio and "ratio" in spread:
        text += f" {spread['ratio']:.2f}×"
    return text


def _number(value: float) -> str:
    return f"{value:.3f}" if value < 1 else f"{value:.2f}" if value < 100 else f"{value:.0f}"


def _target(metric: Metric, found: dict[str, dict[str, float]]) -> str:
    """The target, and whether pyxen with its native path meets it."""
    ours = found.get("pyxen")
    if metric.ratio is not None:
        measured, wanted, text = ours and ours.get("ratio"), metric.ratio, f"≤ {metric.ratio:g}×"
    elif metric.limit is not None:
        measured, wanted = ours and ours["median"], metric.limit
        text = f"≤ {metric.limit:g} {metric.unit}"
    else:
        return ""
    if not isinstance(measured, float):
        return text
    return f"{text}: {'met' if measured <= wanted else 'missed'}"


def store(
    directory: Path, date: str, facts: dict[str, object], runs: list[Run], summary: Summary
) -> Path:
    """Write everything to `directory`/DATE.json; returns the path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{date}.json"
    content: dict[str, Any] = {
        "format": FORMAT,
        "date": date,
        **facts,
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "summary": summary,
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return path
