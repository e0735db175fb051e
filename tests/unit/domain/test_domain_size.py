"""What is refused before a domain is built."""

from __future__ import annotations

from uuid import UUID

import pytest

from pyxen.domain.machine import check_size
from pyxen.errors import UserError
from pyxen.hypervisor.domain import DomainSpec
from pyxen.types import DomId


def spec(**changes: int) -> DomainSpec:
    sizes = {"memory_pages": 64, "max_pages": 64, "max_vcpus": 1, "max_event_port": 2, **changes}
    return DomainSpec(DomId(1), UUID(int=1), "d1", **sizes)


def test_what_fits() -> None:
    check_size(spec())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_event_port": 1}, "event channels"),
        ({"max_vcpus": 129}, "vCPUs"),
        ({"max_pages": 1 << 40}, "MiB"),
    ],
)
def test_what_does_not(changes: dict[str, int], said: str) -> None:
    with pytest.raises(UserError, match=said) as refused:
        check_size(spec(**changes))
    assert refused.value.exit_code == 3
