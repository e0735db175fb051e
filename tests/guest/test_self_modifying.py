"""Code that a guest changes is executed as changed, by whatever address it was written."""

from __future__ import annotations

import pytest

from pyxen.memory.pagetable import PTE_NX, PTE_PRESENT, PTE_RW, PTE_USER

from .conftest import CODE, DATA, Bench

SUBROUTINE = 0x150000
ALIAS = 0x160000
ROUNDS = 500


def changing(stores: int) -> str:
    """Store `stores` times beside the subroutine, change it, call it, compare; RCX times.

    0: mov edx, N; 1: mov [r10], rdx; dec edx; jnz 1b; mov [r8], ecx; call r9; cmp eax, ecx
    jne 2f; dec rcx; jnz 0b; syscall; 2: ud2
    """
    return (
        f"ba {stores.to_bytes(4, 'little').hex()} 49 89 12 ff ca 75 f9 41 89 08 41 ff d1 39 c8"
        "75 07 48 ff c9 75 e5 0f 05 0f 0b"
    )


@pytest.mark.parametrize("stores", [1, 30, 200], ids=("few", "some", "many"))
@pytest.mark.parametrize("where", ["same address", "alias", "alias without execution"])
def test_changed_code_runs_as_changed(bench: Bench, user: bool, where: str, stores: int) -> None:
    if not bench.native and where == "alias without execution":
        pytest.skip("the translator by itself overlooks stores by such an address")
    flags = PTE_PRESENT | PTE_RW | PTE_USER
    if where == "alias without execution":
        flags |= PTE_NX
    bench.set_pte(ALIAS, bench.frame(SUBROUTINE) << 12 | flags)
    bench.engine.flush_tlb()
    bench.put(SUBROUTINE, "b8 00 00 00 00 c3")  # mov eax, ...; ret
    written = SUBROUTINE if where == "same address" else ALIAS
    regs = bench.engine.regs
    regs.rcx, regs.r8, regs.r9, regs.r10 = ROUNDS, written + 1, SUBROUTINE, written + 0x800
    bench.run(changing(stores), user=user)
    assert regs.rcx == 0, f"after {ROUNDS - regs.rcx} rounds"


@pytest.mark.parametrize("stores", range(60, 70))
def test_a_block_that_changes_itself(bench: Bench, user: bool, stores: int) -> None:
    """By another address. The engine takes a page for data after some 64 stores: here, too."""
    bench.set_pte(ALIAS, bench.frame(CODE) << 12 | PTE_PRESENT | PTE_RW | PTE_USER)
    bench.engine.flush_tlb()
    regs = bench.engine.regs
    regs.rcx, regs.r8, regs.r10, regs.r11 = ROUNDS, ALIAS + 20, ALIAS + 0x800, DATA
    # 0: mov edx, N; 1: mov [r10], rdx; dec edx; mov rdi, r11; cmovz rdi, r8; mov [rdi], ecx
    # mov eax, ...; jnz 1b; cmp eax, ecx; jne 2f; dec rcx; jnz 0b; syscall; 2: ud2
    bench.run(
        f"ba {stores.to_bytes(4, 'little').hex()} 49 89 12 ff ca 4c 89 df 49 0f 44 f8 89 0f"
        "b8 00 00 00 00 75 eb 39 c8 75 07 48 ff c9 75 dd 0f 05 0f 0b",
        user=user,
    )
    assert regs.rcx == 0, f"after {ROUNDS - regs.rcx} rounds"


def test_a_page_that_was_data_becomes_code_and_data_again(bench: Bench, user: bool) -> None:
    regs = bench.engine.regs
    for turn in range(1, 200):
        # Data first, by short stores; then code, in the same place.
        regs.rdi, regs.rcx, regs.rax = DATA, 512, turn
        assert bench.run("f3 48 ab 0f 05", user=user) is not None  # rep stosq; syscall
        assert bench.word(DATA) == bench.word(DATA + 4088) == turn
        # mov dword [rdi], 0xc3c0ff; call rdi; syscall: writes `inc eax; ret` over the data.
        regs.rdi, regs.rax = DATA, turn
        bench.run("c7 07 ff c0 c3 00 ff d7 0f 05", user=user)
        assert regs.rax == turn + 1
