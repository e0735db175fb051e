"""A short campaign against the block back end, and that its checks see what they should see."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyxen.backend.blk import device, pages, request, ring
from pyxen.backend.blk.storage import raw

from .blk_ring import BlkCampaign
from .campaign import Failed

DEVICES = 4


@pytest.fixture
def campaign() -> Iterator[BlkCampaign]:
    made = BlkCampaign(seed=1)
    yield made
    made.close()


def test_a_short_campaign(campaign: BlkCampaign) -> None:
    for number in range(DEVICES):
        campaign.domain(number)
    assert campaign.totals.operations > 500 * DEVICES
    assert campaign.totals.reasons["0"] > campaign.totals.operations // 5, "many are good"
    assert campaign.totals.reasons["-1"] > campaign.totals.operations // 5, "many are bad"


BUGS: list[tuple[object, str, object]] = [
    (pages.GrantedPages, "written", lambda self, extents: None),
    (pages.GrantedPages, "end", lambda self, mapping: None),
    (device, "_checked_offset", lambda storage, sector, length: sector * 512 % (1 << 40)),
    (request, "_LAST_SECTOR", 200),
    (request, "MAX_INDIRECT_SEGMENTS", 300),
    (request, "BLKIF_MAX_SEGMENTS_PER_REQUEST", 12),
    (ring, "HEADER_BYTES", 72),
    (raw, "_write", lambda *_: 0),
    (raw, "_punch_hole", lambda *_: 0),
]


@pytest.mark.parametrize(("where", "name", "bug"), BUGS, ids=[name for _, name, _ in BUGS])
def test_bugs_are_seen(
    campaign: BlkCampaign, monkeypatch: pytest.MonkeyPatch, where: object, name: str, bug: object
) -> None:
    monkeypatch.setattr(where, name, bug)
    with pytest.raises(Failed, match="--campaign blk --seed 1 --domain"):
        for number in range(DEVICES):
            campaign.domain(number)
