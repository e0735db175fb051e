"""A short campaign of the fuzzer, and that its checks see what they should see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyxen.abi.errno import E
from pyxen.cpu.unicorn import layout as engine_layout
from pyxen.errors import XenError
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall import table
from pyxen.memory import layout
from pyxen.memory.pagetable import PTE_RW
from pyxen.types import PAGE_SHIFT

from ..guest.kernel import why_not
from .campaign import Campaign, Failed, Subject
from .invariants import check_invariants

pytestmark = pytest.mark.skipif(bool(why_not()), reason=why_not())
DOMAINS = 10


@pytest.fixture(params=(True, False), ids=("native", "python"))
def campaign(request: pytest.FixtureRequest) -> Iterator[Campaign]:
    made = Campaign(seed=1, native=request.param)
    yield made
    made.close()


@pytest.fixture
def subject(campaign: Campaign) -> Iterator[Subject]:
    made = Subject(campaign._image, campaign._kernel, "1", native=campaign.native, tame=True)
    made.start()
    yield made
    made.close()


def test_a_short_campaign(campaign: Campaign) -> None:
    for number in range(DOMAINS):
        campaign.domain(number)
    totals = campaign.totals
    assert totals.operations > 500 * DOMAINS
    assert totals.crashes < totals.operations // 100, "most operations should be survived"


def test_a_campaign_can_be_repeated(campaign: Campaign) -> None:
    campaign.domain(0)
    first = campaign.totals.operations
    campaign.domain(0)
    assert campaign.totals.operations == 2 * first > 0


def test_a_new_domain_has_nothing_wrong(subject: Subject) -> None:
    assert check_invariants(subject.domain) == []


@pytest.mark.parametrize(
    ("mfn", "index", "value", "said"),
    [
        (layout.M2P_L3, 3, 0x1003, "frame 0x10 of Xen's"),
        (0x900, 0, 1, "frame 0x900 of Xen's was written"),
        (layout.GDT_L1, 14, 0, "page 14 of vCPU 0's descriptor window"),
        (layout.GDT_L1, 2, 0x10 << 12 | 3, "page 2 of vCPU 0's descriptor window"),
    ],
)
def test_damage_to_xens_frames_is_seen(
    subject: Subject, mfn: int, index: int, value: int, said: str
) -> None:
    subject.domain.memory.words[(mfn << 9) + index] = value
    assert any(said in line for line in check_invariants(subject.domain))


def test_a_wrong_owner_is_seen(subject: Subject) -> None:
    subject.domain.frames.give_to_domain(0x55)
    assert "the owner of frame 0x55 is wrong" in check_invariants(subject.domain)


def test_a_number_for_a_frame_of_xens_is_seen(subject: Subject) -> None:
    d = subject.domain
    d.memory.words[(d.memory.m2p_mfn << 9) + 0x33] = 5
    assert check_invariants(d) == ["the M2P has 0x5 for frame 0x33 of Xen's"]


def test_wrong_page_tables_are_seen(subject: Subject) -> None:
    words, places = subject.domain.memory.words, subject.generator.places
    at = (places.first_l1_maddr >> 3) + places.page_index
    words[at] = places.tables[0] << PAGE_SHIFT | PTE_RW | 1
    assert any("is used as WRITABLE" in line for line in check_invariants(subject.domain))
    words[at] = 0x10 << PAGE_SHIFT | 1
    assert any("the foreign frame" in line for line in check_invariants(subject.domain))


def test_a_wrong_privilege_level_is_seen(subject: Subject) -> None:
    subject.domain.engine.regs.dwords[engine_layout.HFLAGS >> 2] &= ~3
    assert check_invariants(subject.domain) == ["the guest runs at privilege level 0"]


def test_an_error_of_ours_is_a_failure(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(1000))
    real = table.call

    def broken(d: Domain, v: object, number: int, arguments: tuple[int, ...]) -> int:
        if next(calls) == 30:
            raise ZeroDivisionError("a bug")
        return real(d, v, number, arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(table, "call", broken)
    with pytest.raises(Failed, match=r"ZeroDivisionError(?s:.*)make fuzz FUZZ=.*--domain 0"):
        campaign.domain(0)


def test_a_refusal_is_none(campaign: Campaign, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise XenError(E.PERM, "no")

    monkeypatch.setattr("pyxen.hypervisor.hypercall.cpu_state.is_canonical", refuse)
    campaign.domain(0)
