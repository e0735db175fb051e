"""Another Unicorn is refused in words that say what to do."""

import pytest

from pyxen.cpu.base import CpuidLeaf
from pyxen.cpu.unicorn import layout, library
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.errors import UserError
from pyxen.memory.machine import MachineMemory


def make_engine() -> None:
    memory = MachineMemory(16)
    try:
        UnicornEngine(memory, lambda leaf, subleaf: CpuidLeaf()).close()
    finally:
        memory.close()


def test_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "version", lambda: (2, 2, 0))
    with pytest.raises(UserError, match=r"version 2\.2\.0.*2\.1\.4 only") as refused:
        make_engine()
    assert refused.value.hint == "pip install unicorn==2.1.4"


def test_moved_fields(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = tuple((reg, at + 8, size, value) for reg, at, size, value in layout._REG_PROOFS)
    monkeypatch.setattr(layout, "_REG_PROOFS", moved)
    with pytest.raises(UserError, match="another layout at offset"):
        make_engine()


def test_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library.platform, "machine", lambda: "riscv64")
    with pytest.raises(UserError, match="not on riscv64"):
        library.path()


def test_the_right_one_is_accepted() -> None:
    make_engine()
