"""A few rounds of the campaign against boot loaders, and what a failure says."""

from __future__ import annotations

import pytest

from .bootloader import BootloaderCampaign
from .campaign import Failed


def test_a_few_rounds() -> None:
    campaign = BootloaderCampaign(5)
    try:
        for number in range(12):
            campaign.run(60, number, only=True)
    finally:
        campaign.close()


def test_a_failure_says_how_to_see_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.bootloader.find", lambda options: 1 // 0)
    campaign = BootloaderCampaign(5)
    try:
        with pytest.raises(Failed, match="--campaign bootloader --seed 5 --domain 3"):
            campaign.run(60, 3, only=True)
    finally:
        campaign.close()
