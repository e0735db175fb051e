"""The shared words: attributes are words, at the addresses that C is told."""

import ctypes

from pyxen.cpu.pvstate import NUMBERS, RING_SLOTS, PvDomain, PvState, Word


def test_an_attribute_is_a_word_at_its_index() -> None:
    pv = PvState()
    pv.kernel_sp = 0xFFFF_8880_0000_1000
    pv.user_cr3 = -1
    raw = (ctypes.c_uint64 * 16).from_address(pv.address)
    assert raw[0] == pv.kernel_sp == 0xFFFF_8880_0000_1000
    assert raw[12] == (1 << 64) - 1


def test_no_two_attributes_share_a_word() -> None:
    for kind in (PvState, PvDomain):
        indices = [w.index for w in vars(kind).values() if isinstance(w, Word)]
        assert len(set(indices)) == len(indices)


def test_trap_tables_lie_behind_the_words() -> None:
    pv = PvState()
    pv.traps_address[0] = 1
    pv.traps_flags[255] = 2
    assert (len(pv.traps_address), len(pv.traps_flags)) == (256, 256)
    assert (pv.words[PvState.WORDS], pv.words[-1]) == (1, 2)


def test_the_ring_keeps_the_last_hypercalls_in_order() -> None:
    pv = PvDomain()
    for n in range(RING_SLOTS + 3):
        pv.record_hypercall(n, (n, 2), -22 if n & 1 else n)
    records = pv.recent_hypercalls()
    assert [r.number for r in records] == list(range(3, RING_SLOTS + 3))
    assert records[0].args == (3, 2, 0, 0, 0, 0)
    assert (records[0].result, records[1].result) == (-22, 4)


def test_counters_by_name() -> None:
    pv = PvDomain()
    pv.count_iret = 7
    assert pv.counters["iret"] == 7
    assert pv.counters["syscall"] == 0


def test_calls_and_failures_by_number() -> None:
    pv = PvDomain()
    for number, result in ((29, 0), (29, -38), (32, -4096), (NUMBERS, -1), ((1 << 64) - 1, 0)):
        pv.record_hypercall(number, (), result)
    assert (pv.calls[29], pv.failures[29]) == (2, 1)
    assert (pv.calls[32], pv.failures[32]) == (1, 0), "a large result is no error"
    assert (pv.calls[NUMBERS - 1], pv.failures[NUMBERS - 1]) == (2, 1), "all unknown ones together"
    assert sum(pv.calls) == pv.hypercalls
    assert len(pv.recent_hypercalls()) == 5
