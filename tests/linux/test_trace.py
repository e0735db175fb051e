"""Traces of a real kernel."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.linux.host import PROMPT, Host


def hypercalls(host: Host) -> dict[str, Any]:
    """`pyxen hypercalls guest --json`."""
    done = subprocess.run(
        [sys.executable, "-m", "pyxen.cli", "hypercalls", "guest", "--json"],
        env=host.environment,
        capture_output=True,
        check=True,
    )
    shown: dict[str, Any] = json.loads(done.stdout)
    return shown


def test_a_life_under_a_trace(host: Host, config: Path) -> None:
    host.xl("create", "-p", str(config))
    boot = host.session("trace", "-e", "event_channel_op,grant_table_op", "-n", "12", "guest")
    boot.expect(b"it is paused")
    host.xl("unpause", "guest")
    boot.expect(b"event_channel_op send port=2 -> 0")
    assert boot.end() == 0
    guest = host.console("guest")
    guest.expect(PROMPT)

    before = hypercalls(host)
    calls = {row["name"]: row["calls"] for row in before["hypercalls"]}
    assert calls["mmu_update"] > 1000
    assert before["native"]["hypercall"] > 1000

    guest.type("i=0; while [ $i -lt 200 ]; do /bin/true; i=$((i + 1)); done; echo did-$i\n")
    counted = host.xl("trace", "-c", "-d", "1", "guest").stdout
    for name in ("trap page_fault", "trap syscall", "mmu_update", "iret", "multicall"):
        assert f" {name}" in counted, counted
    records = [
        json.loads(line)
        for line in host.xl("trace", "--json", "-n", "200", "guest").stdout.splitlines()
    ]
    assert len(records) == 200
    assert {"hypercall", "trap"} <= {record["kind"] for record in records}
    guest.expect(b"did-200")

    guest.run("i=0; while [ $i -lt 20 ]; do /bin/true; i=$((i + 1)); done")
    after = hypercalls(host)["native"]
    assert after["syscall"] > before["native"]["syscall"], "the hot path is on again"

    last = host.session("trace", "--hypercalls", "guest")
    last.expect(b"Tracing guest")
    host.xl("shutdown", "-w", "guest")
    assert last.end() == 0, last.output[-2000:]
    assert b"sched_op shutdown reason=poweroff -> 0" in last.output
    assert b"The domain has ended (poweroff)." in last.output
