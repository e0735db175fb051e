"""Guests with several vCPUs: boot, work on all of them, hot remove and add, idleness."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.linux.host import PROMPT, Host, Session, wait_until

CPUS = "/sys/devices/system/cpu"
WORK = "i=0; while [ $i -lt 300 ]; do i=$((i+1)); done; echo d$i >/tmp/on$0"


def boot(host: Host, config: Path, vcpus: int, *more: str) -> Session:
    guest = host.session("create", "-c", str(config), f"vcpus={vcpus}", *more)
    guest.expect(PROMPT)
    return guest


def work_on_all(guest: Session, vcpus: int) -> None:
    """A shell on each vCPU at the same time. In short lines: the guest's shell wraps long ones."""
    guest.run(f"echo '{WORK}' >/tmp/work")
    guest.run('at() { taskset $1 sh -c "$(cat /tmp/work)" $1 & }')
    for vcpu in range(vcpus):
        guest.run(f"at {1 << vcpu:x} 2>/dev/null")
    guest.run("wait")
    assert guest.run("cat /tmp/on*").split() == ["d300"] * vcpus


@pytest.mark.parametrize(
    ("kernel", "vcpus"),
    [*(("config", n) for n in (1, 2, 8, 32)), *(("full_config", n) for n in (1, 2, 8))],
)
def test_every_vcpu_works(
    host: Host, kernel: str, vcpus: int, request: pytest.FixtureRequest
) -> None:
    guest = boot(host, request.getfixturevalue(kernel), vcpus)
    assert guest.run("nproc") == str(vcpus)
    assert host.list()[0][3] == str(vcpus)
    work_on_all(guest, vcpus)
    rows = host.xl("vcpu-list", "guest").stdout.splitlines()[1:]
    assert len(rows) == vcpus
    nodes = [guest.run(f"xenstore-read cpu/{n}/availability") for n in range(vcpus)]
    assert nodes == ["online"] * vcpus
    assert guest.run("dmesg | grep -c -E 'lockup|rcu: INFO|Call Trace'") == "0"
    host.xl("shutdown", "-w", "guest")
    assert guest.end() == 0


def test_a_vcpu_is_removed_and_added_from_inside(host: Host, config: Path) -> None:
    guest = boot(host, config, 2)
    for _ in range(3):
        guest.run(f"echo 0 >{CPUS}/cpu1/online")
        assert guest.run(f"cat {CPUS}/online").splitlines()[-1] == "0"
        wait_until(lambda: host.list()[0][3] == "1")
        guest.run(f"echo 1 >{CPUS}/cpu1/online")
        assert guest.run(f"cat {CPUS}/online").splitlines()[-1] == "0-1"
    assert host.list()[0][3] == "2"
    assert guest.run("taskset 2 sh -c 'echo $((6 * 7))'") == "42"


def test_stolen_time_is_what_others_had(host: Host, config: Path) -> None:
    """Two vCPUs that compute have one thread: each loses about as much as it gets."""
    guest = boot(host, config, 2)
    guest.run("head -3 /proc/stat >/tmp/before")
    guest.run("for m in 1 2; do taskset $m timeout 3 sh -c 'while :; do :; done' & done")
    guest.run("wait")
    before = guest.run("tail -2 /tmp/before").splitlines()[-2:]
    after = guest.run("head -3 /proc/stat | tail -2").splitlines()[-2:]
    for old, new in zip(before, after, strict=True):
        user, _, system, _, _, _, softirq, stolen = (
            int(b) - int(a) for a, b in zip(old.split()[1:9], new.split()[1:9], strict=True)
        )
        assert stolen > 0.25 * (user + system + softirq)


def test_two_vcpus_without_the_native_path(tmp_path: Path, config: Path) -> None:
    host = Host(tmp_path / "plain", {"PYXEN_NATIVE": "0"})
    try:
        guest = boot(host, config, 2)
        work_on_all(guest, 2)
    finally:
        host.close()
