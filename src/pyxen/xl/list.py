"""xl list, vcpu-list, vm-list, uptime: what domains there are and what they do."""

from __future__ import annotations

import time
from typing import Any

from pyxen.xend.client import Client
from pyxen.xl.command import Command, Globals, Words, WrongUse

HEADER = "Name                                        ID   Mem VCPUs\tState\tTime(s)"
UPTIME_HEADER = "Name                                ID Uptime"

REASON_LETTERS = {
    "poweroff": "-",
    "reboot": "r",
    "suspend": "s",
    "crash": "c",
    "watchdog": "w",
    "soft_reset": "S",
}
REASON_CODES = {reason: code for code, reason in enumerate(REASON_LETTERS)}
"""SHUTDOWN_* of public/sched.h."""


def run_list(command: Command, words: list[str], globals_: Globals) -> int:
    """xl list."""
    given = command.parse(words)
    if len(given.arguments) > 1:
        raise WrongUse("list takes one domain, or none for all", exit_code=1)
    with Client.connect() as xend:
        if given.has("l"):
            import json

            print(json.dumps(xend.call("config", domains=given.arguments or None), indent=4))
            return 0
        entries = xend.call("list", domains=given.arguments or None)
    print(list_header(given))
    for entry in entries:
        print(list_line(entry, given))
    return 0


def list_header(given: Words) -> str:
    """The first line of `xl list` with these options."""
    header = HEADER
    if given.has("v"):
        header += "   UUID                            Reason-Code\tSecurity Label"
    elif given.has("Z"):
        header += "   Security Label"
    if given.has("c"):
        header += "         Cpupool"
    if given.has("n"):
        header += " NODE Affinity"
    return header


def list_line(entry: dict[str, Any], given: Words) -> str:
    """One domain's line of `xl list`."""
    seconds = entry["cpu_time_ns"] / 1e9
    line = (
        f"{entry['name']:<40} {entry['domid']:>5} {entry['memory_kib'] // 1024:>5}"
        f" {entry['vcpus_online']:>5}     {state_letters(entry)}  {seconds:>8.1f}"
    )
    reason = entry.get("shutdown_reason")
    if given.has("v"):
        code = f"{REASON_CODES.get(reason, 0xFF):x}" if reason else "-"
        line += f" {entry['uuid']} {code:>8}"
    if given.has("v") or given.has("Z"):
        line += f" {'-':>16}"
    if given.has("c"):
        line += f"{'Pool-0':>16}"
    if given.has("n"):
        line += " all"
    return line


def state_letters(entry: dict[str, Any]) -> str:
    """The six letters: running, blocked, paused, shut down, why, dying."""
    state = entry["state"]
    reason = entry.get("shutdown_reason")
    is_down = bool(state.get("shutdown") or state.get("crashed") or reason)
    return "".join(
        (
            "r" if state.get("running") and not is_down else "-",
            "b" if state.get("blocked") and not is_down else "-",
            "p" if state.get("paused") else "-",
            "s" if is_down else "-",
            REASON_LETTERS.get(str(reason), "?") if is_down and reason else "-",
            "d" if state.get("dying") else "-",
        )
    )


def run_vm_list(command: Command, words: list[str], globals_: Globals) -> int:
    """xl vm-list."""
    command.parse(words)
    with Client.connect() as xend:
        entries = xend.call("list")
    print("UUID                                  ID    name")
    for entry in entries:
        print(f"{entry['uuid']}  {entry['domid']}    {entry['name']:<30}")
    return 0


def run_vcpu_list(command: Command, words: list[str], globals_: Globals) -> int:
    """xl vcpu-list."""
    given = command.parse(words)
    with Client.connect() as xend:
        entries = xend.call("list", domains=given.arguments or None)
    columns = ("Name", "ID", "VCPU", "CPU", "State", "Time(s)", "Affinity (Hard / Soft)")
    print("{:<32} {:>5} {:>5} {:>5} {:>5} {:>9} {}".format(*columns))
    for entry in entries:
        for vcpu in entry["vcpus"]:
            print(vcpu_line(entry, vcpu))
    return 0


def vcpu_line(entry: dict[str, Any], vcpu: dict[str, Any]) -> str:
    """One vCPU's line of `xl vcpu-list`. A vCPU that the guest has not brought up is `--p`."""
    line = f"{entry['name']:<32} {entry['domid']:>5} {vcpu['id']:>5}"
    state = vcpu["state"]
    if state in ("offline", "down"):
        line += f"{'-':>5} {'-':>3}-p "
    else:
        running, blocked = state == "running", state == "blocked"
        line += f"{vcpu.get('cpu', 0):>5} {'r' if running else '-':>3}{'b' if blocked else '-'}- "
    return f"{line}{vcpu['cpu_time_ns'] / 1e9:>9.1f}  all / all"


def run_uptime(command: Command, words: list[str], globals_: Globals) -> int:
    """xl uptime."""
    given = command.parse(words)
    short = given.has("s")
    with Client.connect() as xend:
        entries = xend.call("list", domains=given.arguments or None)
    now = time.time()
    if not short:
        print(UPTIME_HEADER)
    for entry in entries:
        up = uptime_text(int(now - entry["start_time"]), short)
        if short:
            clock = time.strftime("%H:%M:%S", time.localtime(now))
            print(f" {clock} up {up}, {entry['name']} ({entry['domid']})")
        else:
            print(f"{entry['name']:<33} {entry['domid']:>4} {up}")
    return 0


def uptime_text(seconds: int, short: bool) -> str:
    """A time span as `xl uptime` writes it."""
    days, rest = divmod(max(seconds, 0), 86400)
    hours, rest = divmod(rest, 3600)
    text = f"{hours:>2}:{rest // 60:02}"
    if not short:
        text += f":{rest % 60:02}"
    if days:
        text = f"{days} day{'s' if days > 1 else ''}, {text}"
    return text
