"""Several vCPUs on one engine: what each remembers of the page tables, and what all must forget."""

from __future__ import annotations

import pytest

from pyxen.cpu.base import HYPERCALL, SPINNING, Trap
from pyxen.cpu.unicorn import engine as engine_module
from pyxen.cpu.unicorn.native_hooks import NativeHooks
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW, PTE_USER
from pyxen.types import VcpuId

from .conftest import CODE, DATA, L4, STACK, Bench

FULL = PTE_PRESENT | PTE_RW | PTE_USER
OTHER = DATA + 0x8000
READ = "48 8b 06 0f 05"  # mov rax, [rsi]; syscall
WRITE = "48 89 06 0f 05"  # mov [rsi], rax; syscall
SPARE_CODE = CODE + 0x8000


@pytest.fixture
def pair(bench: Bench) -> Bench:
    """Two vCPUs on the same page table; the words at DATA and OTHER are 1 and 2."""
    bench.engine.add_vcpu(VcpuId(1))
    for vcpu_id in (VcpuId(1), VcpuId(0)):
        bench.engine.select(vcpu_id)
        bench.engine.set_cr3(L4 << 12)
        bench.engine.regs.rsp = STACK
    bench.put(DATA, (1).to_bytes(8, "little"))
    bench.put(OTHER, (2).to_bytes(8, "little"))
    bench.put(CODE, READ)
    bench.put(CODE + 0x100, WRITE)
    return bench


def read(bench: Bench, vcpu: int, vaddr: int = DATA) -> int:
    """What the vCPU reads there; the engine stays with it."""
    engine = bench.engine
    engine.select(VcpuId(vcpu))
    engine.regs.rip, engine.regs.rsi = CODE, vaddr
    assert engine.run() is HYPERCALL
    return engine.regs.rax


def write(bench: Bench, vcpu: int, vaddr: int, value: int) -> None:
    engine = bench.engine
    engine.select(VcpuId(vcpu))
    engine.regs.rip, engine.regs.rsi, engine.regs.rax = CODE + 0x100, vaddr, value
    assert engine.run() is HYPERCALL


@pytest.mark.parametrize("page", [False, True], ids=("all", "page"))
def test_a_flush_for_all_reaches_the_vcpu_that_is_parked(pair: Bench, page: bool) -> None:
    for _ in range(3):
        assert [read(pair, 1), read(pair, 0)] == [1, 1]
    pair.set_pte(DATA, pair.frame(OTHER) << 12 | FULL)
    if page:
        pair.engine.flush_page(DATA)
    else:
        pair.engine.flush_tlb()
    assert [read(pair, 1), read(pair, 0)] == [2, 2]


def test_a_local_flush_is_for_the_selected_one_at_least(pair: Bench) -> None:
    assert [read(pair, 1), read(pair, 0)] == [1, 1]
    pair.set_pte(DATA, pair.frame(OTHER) << 12 | FULL)
    pair.engine.flush_page(DATA, everywhere=False)
    assert read(pair, 0) == 2
    assert read(pair, 1) in (1, 2)
    pair.engine.flush_tlb(everywhere=False)
    assert read(pair, 1) == 2


def test_each_vcpu_has_its_own_page_table(pair: Bench) -> None:
    """The second one's maps DATA elsewhere; they take turns many times."""
    words = pair.memory.words
    tables = [pair.frame(0x400000) + n for n in range(4)]
    for level, (mine, theirs) in enumerate(zip(tables, (L4, L4 + 1, L4 + 2, L4 + 3), strict=True)):
        words[mine << 9 : (mine + 1) << 9] = words[theirs << 9 : (theirs + 1) << 9]
        if level < 3:
            words[mine << 9] = tables[level + 1] << 12 | FULL
    words[(tables[3] << 9) + (DATA >> 12)] = pair.frame(OTHER) << 12 | FULL
    pair.engine.select(VcpuId(1))
    pair.engine.set_cr3(tables[0] << 12)
    for _ in range(50):
        assert [read(pair, 0), read(pair, 1)] == [1, 2]


def test_code_that_another_vcpu_changes(pair: Bench) -> None:
    """The writer's entry was made when the page held no code yet."""
    engine = pair.engine
    write(pair, 1, SPARE_CODE + 0x800, 7)
    write(pair, 1, SPARE_CODE + 0x800, 8)
    for value in (5, 6, 7):
        # mov eax, value; syscall; (written as one word by the other vCPU)
        code = b"\xb8" + value.to_bytes(4, "little") + b"\x0f\x05\x90"
        write(pair, 1, SPARE_CODE, int.from_bytes(code, "little"))
        engine.select(VcpuId(0))
        engine.regs.rip = SPARE_CODE
        assert engine.run() is HYPERCALL
        assert engine.regs.rax == value


def test_a_vcpu_survives_that_all_translations_are_thrown_away(
    monkeypatch: pytest.MonkeyPatch, bench: Bench
) -> None:
    """Its jumps are remembered as pointers to translated blocks."""
    monkeypatch.setattr(engine_module, "TRANSLATION_BUFFER_BYTES", 2 << 20)
    small = bench.new_engine()
    try:
        for vcpu_id in (VcpuId(0), VcpuId(1)):
            small.add_vcpu(vcpu_id)
            small.select(vcpu_id)
            small.set_cr3(L4 << 12)
        blocks = 60_000
        bench.put(0x200000, bytes.fromhex("48ffc0eb00") * blocks + b"\x0f\x05")
        # inc rax; ret, called again and again: mov ecx, 100; 1: call f; dec ecx; jnz 1b; syscall
        bench.put(CODE, "b9 64 00 00 00 e8 06 00 00 00 ff c9 75 f7 0f 05 48 ff c0 c3")
        for _ in range(3):
            for vcpu_id, start, count in ((1, CODE, 100), (0, 0x200000, blocks)):
                small.select(VcpuId(vcpu_id))
                small.enter_kernel_mode()
                regs = small.regs
                regs.rip, regs.rax, regs.rsp = start, 0, STACK
                assert small.run() is HYPERCALL
                assert regs.rax == count
        if isinstance(small._hooks, NativeHooks):
            assert small._hooks.discarded() >= 2
    finally:
        small.close()


def test_vcpus_do_not_mix_up_faults(pair: Bench) -> None:
    pair.unmap(DATA)
    pair.engine.select(VcpuId(1))
    pair.engine.regs.rip, pair.engine.regs.rsi = CODE, DATA
    assert pair.engine.run() == Trap(14, 0, DATA)
    assert read(pair, 0, OTHER) == 2


def test_pause_again_and_again_ends_a_run(bench: Bench) -> None:
    # 1: inc rax; pause; jmp 1b
    bench.engine.regs.rax = 0
    assert bench.run("48 ff c0 f3 90 eb f9") is SPINNING
    first = bench.engine.regs.rax
    assert 1 < first < 1000
    assert bench.engine.run() is SPINNING
    assert bench.engine.regs.rax == 2 * first


def test_a_pause_now_and_then_does_not(bench: Bench) -> None:
    # mov ecx, 3; 1: pause; dec ecx; jnz 1b; syscall
    assert bench.run("b9 03 00 00 00 f3 90 ff c9 75 fa 0f 05") is HYPERCALL
