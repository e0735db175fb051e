"""Guest time: the record never jumps, and readers never see half of it."""

from __future__ import annotations

import random

import pytest
from pv_guest import FakeClock, PvGuest

from pyxen.abi.xen import SharedInfo, VcpuInfo, VcpuTimeInfo
from pyxen.hypervisor.time import (
    CALIBRATION_NS,
    MAX_SLEW,
    RESYNC_NS,
    SystemTime,
    TimeRecord,
    scale_for,
)

SECOND = 1_000_000_000


@pytest.mark.parametrize("hz", [1e6, 19.2e6, 1e9, 2.1e9, 2.999999e9, 3e9, 4.2e9, 1e11])
def test_the_scale_is_normalised_and_exact(hz: float) -> None:
    mul, shift = scale_for(hz)
    assert 1 << 31 <= mul < 1 << 32
    record = TimeRecord(0, 0, mul, shift)
    for seconds in (1, 10):
        assert record.system_ns(int(hz * seconds)) == pytest.approx(seconds * SECOND, rel=1e-8)


def test_a_record_is_read_as_the_guest_reads_it() -> None:
    record = TimeRecord(1000, 77, 1 << 31, 1)
    assert record.system_ns(1000) == 77
    assert record.system_ns(1000 + 500) == 77 + 500
    assert TimeRecord(0, 0, 1 << 31, -2).system_ns(1 << 10) == 1 << 7


def test_calibration_finds_the_frequency() -> None:
    clock = FakeClock()
    clock.look_ns = 1000
    time = SystemTime(clock)
    time.calibrate()
    assert time.tsc_hz == pytest.approx(clock.TSC_HZ, rel=1e-3)
    assert time.now_ns() >= CALIBRATION_NS
    assert abs(time.record.system_ns(clock.tsc()) - time.now_ns()) < 10_000


def test_system_time_begins_at_zero_and_host_time_is_its_inverse() -> None:
    clock = FakeClock()
    time = SystemTime(clock)
    assert 0 <= time.now_ns() < 1000
    clock.advance(5 * SECOND)
    assert time.host_ns(time.now_ns()) == clock.ns


def test_the_record_is_due_once_a_second(guest: PvGuest) -> None:
    assert not guest.time.resync_due()
    guest.clock.advance(RESYNC_NS)
    assert guest.time.resync_due()
    guest.time.resync()
    assert not guest.time.resync_due()


def test_guest_time_is_continuous_and_meets_the_host(guest: PvGuest) -> None:
    """A TSC whose rate wanders: no step back, no jump, and never far away."""
    rng = random.Random(1)
    clock, time = guest.clock, guest.time
    drift = 0.0
    wander = 0
    plain_tsc = clock.tsc
    clock.tsc = lambda: plain_tsc() + wander  # type: ignore[method-assign]
    last = 0
    for second in range(300):
        for _ in range(10):
            clock.advance(SECOND // 10)
            wander += int(drift * clock.TSC_HZ / 10)
            now = time.record.system_ns(clock.tsc())
            assert now >= last
            last = now
        before = time.record.system_ns(clock.tsc())
        time.resync()
        at = time.record.tsc_timestamp
        assert before <= time.record.system_time <= before + 1000
        assert time.record.system_ns(at) == time.record.system_time
        if second > 20:
            assert abs(time.record.system_time - time.now_ns()) < 10_000_000
        drift = rng.uniform(-20e-6, 20e-6)


def test_the_slew_is_limited(guest: PvGuest) -> None:
    """After a long stop of the host the guest's time goes on smoothly, a little faster."""
    guest.clock.ns += 0
    fixed = guest.clock.tsc()
    guest.clock.tsc = lambda: fixed  # type: ignore[method-assign]
    guest.clock.advance(100 * SECOND)
    frozen = guest.time.record.system_ns(fixed)
    guest.time.resync()
    assert guest.time.record.system_time == frozen
    rate = guest.time.record.system_ns(fixed + int(guest.time.tsc_hz)) - frozen
    assert rate / SECOND <= 1 + MAX_SLEW + 1e-6


def _published(guest: PvGuest, at: int) -> VcpuTimeInfo:
    return VcpuTimeInfo.unpack(guest.memory.bytes, at + VcpuInfo.OFFSET["time"])


def test_the_version_is_even_and_moves(guest: PvGuest) -> None:
    at = guest.vcpu.pv.vcpu_info_maddr
    versions = []
    for _ in range(3):
        guest.time.write_vcpu_time(guest.memory, at)
        versions.append(_published(guest, at).version)
    assert all(version % 2 == 0 for version in versions)
    assert versions == sorted(set(versions))


@pytest.mark.parametrize("hostile", [1, 7, 0xFFFF_FFFE, 0xFFFF_FFFF])
def test_whatever_the_guest_wrote_into_the_version(guest: PvGuest, hostile: int) -> None:
    at = guest.vcpu.pv.vcpu_info_maddr
    guest.memory.dwords[(at + VcpuInfo.OFFSET["time"]) >> 2] = hostile
    guest.time.write_vcpu_time(guest.memory, at)
    after = _published(guest, at).version
    assert after % 2 == 0
    assert after != hostile


def test_the_version_is_odd_while_the_record_changes(guest: PvGuest) -> None:
    """A reader between any two stores sees an odd version, or one whole record."""
    at = guest.vcpu.pv.vcpu_info_maddr
    seen: list[int] = []

    class Watched:
        """The views of a memory, noting the version at every store."""

        def __init__(self, view: memoryview) -> None:
            self.view = view

        def __getitem__(self, index: int) -> int:
            return self.view[index]

        def __setitem__(self, index: int, value: int) -> None:
            self.view[index] = value
            seen.append(_published(guest, at).version)

    class Memory:
        dwords = Watched(guest.memory.dwords)
        bytes = guest.memory.bytes

    guest.time.write_vcpu_time(Memory(), at)  # type: ignore[arg-type]
    assert [version % 2 for version in seen] == [1, 0]


def test_what_is_published_is_the_record(guest: PvGuest) -> None:
    at = guest.vcpu.pv.vcpu_info_maddr
    guest.time.write_vcpu_time(guest.memory, at)
    seen, record = _published(guest, at), guest.time.record
    assert seen.tsc_timestamp == record.tsc_timestamp
    assert seen.system_time == record.system_time
    assert seen.tsc_to_system_mul == record.tsc_to_system_mul
    assert seen.tsc_shift == record.tsc_shift
    assert seen.flags == 1, "stable over vCPUs"


def test_the_wall_clock_is_the_time_of_day_at_system_time_zero(guest: PvGuest) -> None:
    guest.time.write_wall_clock(guest.memory, guest.domain.shared_info)
    page = SharedInfo.unpack(guest.memory.bytes, guest.domain.shared_info)
    shown = (page.wc_sec | page.wc_sec_hi << 32) * SECOND + page.wc_nsec
    assert page.wc_version % 2 == 0
    assert abs(shown + guest.time.now_ns() - guest.clock.realtime_ns()) < 1000
    guest.clock.wall_ns = (1 << 33) * SECOND
    guest.time.write_wall_clock(guest.memory, guest.domain.shared_info)
    page = SharedInfo.unpack(guest.memory.bytes, guest.domain.shared_info)
    assert page.wc_sec_hi == 2, "after 2106"


def test_a_tsc_that_stands_still_or_goes_back_does_not_end_the_process(guest: PvGuest) -> None:
    last = guest.time.record.system_ns(guest.clock.tsc())
    for tsc in (guest.clock.tsc(), 17, 0):
        guest.clock.tsc = lambda tsc=tsc: tsc  # type: ignore[method-assign]
        guest.clock.advance(2 * SECOND)
        guest.time.resync()
        guest.time.write_vcpu_time(guest.memory, guest.vcpu.pv.vcpu_info_maddr)
        now = guest.time.record.system_ns(tsc)
        assert now >= last, "guest time never goes back"
        last = now
