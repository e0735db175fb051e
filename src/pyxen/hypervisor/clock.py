"""The clocks that are handed in: real ones here, deterministic ones in tests."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Where all time comes from."""

    def monotonic_ns(self) -> int:
        """Nanoseconds since some fixed point; never goes back."""

    def realtime_ns(self) -> int:
        """Nanoseconds since the Unix epoch (UTC)."""

    def tsc(self) -> int:
        """The time stamp counter as the guest's RDTSC shows it now."""


class HostClock:
    """The host's own clocks. `read_tsc` is the engine's."""

    def __init__(self, read_tsc: Callable[[], int]) -> None:
        self.tsc = read_tsc

    def monotonic_ns(self) -> int:
        """CLOCK_MONOTONIC."""
        return time.monotonic_ns()

    def realtime_ns(self) -> int:
        """CLOCK_REALTIME."""
        return time.time_ns()
