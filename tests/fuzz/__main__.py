"""`make fuzz FUZZ="--seconds 60 --seed 1"`: random operations from a guest, for a while.

Three campaigns share the time. `guest` is a kernel that does anything: domains with an even number
are tame, they leave their tables and their own code alone, seldom crash, and so come further.
Everything must hold for both. `blk` is a front end of the block back end (blk_ring.py).
`bootloader` damages images in which a kernel is to be found (bootloader.py). A failure prints what
to run to see it again.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable

from .blk_ring import BlkCampaign
from .bootloader import BootloaderCampaign
from .campaign import Campaign, Failed

AnyCampaign = Campaign | BlkCampaign | BootloaderCampaign


def main() -> int:
    """0: nothing was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--campaign", choices=("guest", "blk", "bootloader", "all"), default="all")
    parser.add_argument("--engine", choices=("native", "python", "both"), default="both")
    parser.add_argument("--domain", type=int, help="only this one")
    options = parser.parse_args()
    campaigns = chosen(options)
    print(f"seed {options.seed}", flush=True)
    for name, make in campaigns.items():
        campaign = make()
        started = time.monotonic()
        try:
            totals = campaign.run(
                options.seconds / len(campaigns), options.domain or 0, options.domain is not None
            )
        except Failed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
        finally:
            campaign.close()
        rate = totals.operations / (time.monotonic() - started)
        print(
            f"{name}: {totals.operations} operations, {rate:.0f} a second, {totals.domains} "
            f"domains, {totals.crashes} crashed"
        )
        for why, count in sorted(totals.reasons.items(), key=lambda item: -item[1])[:12]:
            print(f"  {count:6} {why}")
    return 0


def chosen(options: argparse.Namespace) -> dict[str, Callable[[], AnyCampaign]]:
    """What makes each campaign that was asked for."""
    campaigns: dict[str, Callable[[], AnyCampaign]] = {}
    if options.campaign in ("guest", "all"):
        for engine in ("native", "python"):
            if options.engine in (engine, "both"):
                native = engine == "native"
                campaigns[engine] = lambda native=native: Campaign(options.seed, native=native)
    if options.campaign in ("blk", "all"):
        campaigns["blk"] = lambda: BlkCampaign(options.seed)
    if options.campaign in ("bootloader", "all"):
        campaigns["bootloader"] = lambda: BootloaderCampaign(options.seed)
    return campaigns


if __name__ == "__main__":
    sys.exit(main())
