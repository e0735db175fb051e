"""Xen's time for guests: system time scaled from the TSC, the wall clock, and vCPU timers.

Source: public/xen.h (struct vcpu_time_info, shared_info.wc_*), public/vcpu.h (timers).

    system_time(tsc) = record.system_time + ((tsc - record.tsc_timestamp) << shift) * mul >> 32

The record is written anew about once a second: the scale is then chosen such that the guest's time,
which may not jump, meets the host's monotonic clock one second later.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyxen.abi.xen import SharedInfo, VcpuInfo, VcpuTimeInfo
from pyxen.hypervisor.clock import Clock
from pyxen.memory.machine import MachineMemory

NS_PER_S = 1_000_000_000
CALIBRATION_NS = 20_000_000
RESYNC_NS = NS_PER_S
MAX_SLEW = 500e-6
TSC_STABLE_BIT = 1

_TIME = VcpuInfo.OFFSET["time"]
_WC_VERSION = SharedInfo.OFFSET["wc_version"]


@dataclass(frozen=True, slots=True)
class TimeRecord:
    """One scaling of the TSC: the fields of vcpu_time_info, and the TSC frequency it means."""

    tsc_timestamp: int
    system_time: int
    tsc_to_system_mul: int
    tsc_shift: int

    def system_ns(self, tsc: int) -> int:
        """What a guest computes from this record at `tsc`."""
        delta = tsc - self.tsc_timestamp
        delta = delta << self.tsc_shift if self.tsc_shift >= 0 else delta >> -self.tsc_shift
        return self.system_time + ((delta * self.tsc_to_system_mul) >> 32)


def scale_for(hz: float) -> tuple[int, int]:
    """(tsc_to_system_mul, tsc_shift) for a TSC frequency, the multiplier normalised to 32 bits."""
    mul = NS_PER_S * 2.0**32 / hz
    shift = 0
    while mul >= 2.0**32:
        mul /= 2
        shift += 1
    while mul < 2.0**31:
        mul *= 2
        shift -= 1
    return int(mul), shift


class SystemTime:
    """The domain's system time: nanoseconds since the domain was made."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch_ns = clock.monotonic_ns()
        self._first_tsc = clock.tsc()
        self._first_ns = 0
        """System time at the TSC from which its frequency is measured."""
        self.next_resync_ns = 0
        self.tsc_hz = 0.0
        self.record = TimeRecord(self._first_tsc, 0, 1 << 31, 0)

    def calibrate(self) -> None:
        """Measure the TSC against the monotonic clock, over at least CALIBRATION_NS."""
        while (elapsed := self._clock.monotonic_ns() - self._epoch_ns) < CALIBRATION_NS:
            pass
        self.tsc_hz = (self._clock.tsc() - self._first_tsc) * NS_PER_S / elapsed
        mul, shift = scale_for(self.tsc_hz)
        tsc = self._clock.tsc()
        self.record = TimeRecord(tsc, self.now_ns(), mul, shift)
        self.next_resync_ns = self.now_ns() + RESYNC_NS

    def now_ns(self) -> int:
        """System time now, by the host's monotonic clock."""
        return self._clock.monotonic_ns() - self._epoch_ns

    def host_ns(self, system_ns: int) -> int:
        """The host's monotonic clock at a system time."""
        return system_ns + self._epoch_ns

    def resync_due(self) -> bool:
        """Whether the record is older than a second."""
        return self.now_ns() >= self.next_resync_ns

    def resync(self) -> None:
        """Make a new record that continues the old one and approaches the monotonic clock."""
        tsc, now = self._clock.tsc(), self.now_ns()
        if tsc > self.record.tsc_timestamp:
            elapsed = max(now - self._first_ns, 1)
            self.tsc_hz = (tsc - self._first_tsc) * NS_PER_S / elapsed
            guest_now = self.record.system_ns(tsc)
        else:
            # The host's counter began anew (it slept): the frequency is the last one known.
            self._first_tsc, self._first_ns = tsc, now
            guest_now = max(self.record.system_time, now)
        slew = (now - guest_now) / RESYNC_NS
        slew = max(-MAX_SLEW, min(MAX_SLEW, slew))
        mul, shift = scale_for(self.tsc_hz / (1 + slew))
        self.record = TimeRecord(tsc, guest_now, mul, shift)
        self.next_resync_ns = now + RESYNC_NS

    def write_vcpu_time(self, memory: MachineMemory, vcpu_info_maddr: int) -> None:
        """Publish the record in a vcpu_info; readers retry while the version is odd."""
        maddr = vcpu_info_maddr + _TIME
        version = (memory.dwords[maddr >> 2] + 1) | 1
        memory.dwords[maddr >> 2] = version & 0xFFFFFFFF
        record = self.record
        VcpuTimeInfo(
            version=version & 0xFFFFFFFF,
            tsc_timestamp=record.tsc_timestamp,
            system_time=record.system_time,
            tsc_to_system_mul=record.tsc_to_system_mul,
            tsc_shift=record.tsc_shift,
            flags=TSC_STABLE_BIT,
        ).pack_into(memory.bytes, maddr)
        memory.dwords[maddr >> 2] = (version + 1) & 0xFFFFFFFF

    def write_wall_clock(self, memory: MachineMemory, shared_info_maddr: int) -> None:
        """Publish the time of day at which system time was 0 (shared_info.wc_*)."""
        wall = self._clock.realtime_ns() - self.now_ns()
        at = (shared_info_maddr + _WC_VERSION) >> 2
        seconds = wall // NS_PER_S
        memory.dwords[at] |= 1
        memory.dwords[at + 1] = seconds & 0xFFFFFFFF
        memory.dwords[at + 2] = wall % NS_PER_S
        memory.dwords[(shared_info_maddr + SharedInfo.OFFSET["wc_sec_hi"]) >> 2] = seconds >> 32
        memory.dwords[at] = (memory.dwords[at] + 1) & 0xFFFFFFFF
