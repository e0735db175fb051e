"""`make fuzz FUZZ="--seconds 60 --seed 1"`: random operations from a guest, for a while.

Domains with an even number are tame: they leave their tables and their own code alone, seldom
crash, and so come further. The others do anything. Everything must hold for both. A failure prints
what to run to see it again.
"""

from __future__ import annotations

import argparse
import sys
import time

from .campaign import Campaign, Failed


def main() -> int:
    """0: nothing was found."""
    parser = argparse.ArgumentParser(prog="fuzz", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--engine", choices=("native", "python", "both"), default="both")
    parser.add_argument("--domain", type=int, help="only this one")
    options = parser.parse_args()
    engines = ("native", "python") if options.engine == "both" else (options.engine,)
    print(f"seed {options.seed}", flush=True)
    for engine in engines:
        campaign = Campaign(options.seed, native=engine == "native")
        started = time.monotonic()
        try:
            totals = campaign.run(
                options.seconds / len(engines), options.domain or 0, options.domain is not None
            )
        except Failed as failure:
            print(f"FAILED: {failure}", file=sys.stderr)
            return 1
        finally:
            campaign.close()
        rate = totals.operations / (time.monotonic() - started)
        print(
            f"{engine}: {totals.operations} operations, {rate:.0f} a second, {totals.domains} "
            f"domains, {totals.crashes} crashed"
        )
        for why, count in sorted(totals.reasons.items(), key=lambda item: -item[1])[:12]:
            print(f"  {count:6} {why}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
