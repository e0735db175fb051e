"""What is refused before a domain is built."""

from __future__ import annotations

from uuid import UUID

import pytest

from pyxen.domain.machine import MachineSpec, check_size
from pyxen.errors import UserError
from pyxen.hypervisor.domain import DomainSpec
from pyxen.types import DomId


def spec(**changes: int) -> DomainSpec:
    sizes = {"memory_pages": 64, "max_pages": 64, "max_vcpus": 1, "max_event_port": 2, **changes}
    return DomainSpec(DomId(1), UUID(int=1), "d1", **sizes)


def test_what_fits() -> None:
    check_size(spec())
    check_size(spec(max_grant_frames=1, max_maptrack_frames=0, max_grant_version=1))
    check_size(spec(max_grant_frames=64, max_maptrack_frames=1024, max_grant_version=2))


def request(**more: int) -> dict[str, object]:
    """What xend asks of a domain process."""
    known: dict[str, object] = {"domid": 1, "uuid": str(UUID(int=1)), "name": "d1"}
    known |= {
        "memory_kib": 4096,
        "maxmem_kib": 4096,
        "maxvcpus": 1,
        "kernel": "k",
        "log_dir": "l",
        "state_dir": "s",
        "run_dir": "r",
    }
    return known | more


def test_grant_limits_reach_the_domain() -> None:
    limits = {"max_grant_frames": 3, "max_maptrack_frames": 0, "max_grant_version": 1}
    asked = MachineSpec.from_json(request(**limits)).domain
    assert {name: getattr(asked, name) for name in limits} == limits
    left_out = MachineSpec.from_json(request()).domain
    assert [getattr(left_out, name) for name in limits] == [64, 1024, 2]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_event_port": 1}, "event channels"),
        ({"max_vcpus": 129}, "vCPUs"),
        ({"max_pages": 1 << 40}, "MiB"),
        ({"max_grant_frames": 0}, "max_grant_frames is 0: .* 1 to 64"),
        ({"max_grant_frames": 65}, "max_grant_frames is 65"),
        ({"max_maptrack_frames": 1025}, "max_maptrack_frames is 1025: .* 0 to 1024"),
        ({"max_grant_version": 0}, "max_grant_version is 0: .* 1 to 2"),
        ({"max_grant_version": 3}, "max_grant_version is 3"),
    ],
)
def test_what_does_not(changes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        check_size(spec(**changes))
    assert refused.value.exit_code == 3
