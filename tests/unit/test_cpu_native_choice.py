"""Which path an engine takes, and what it says about it."""

import ctypes
import importlib.util
from collections.abc import Iterator

import pytest

from pyxen.cpu.base import Capabilities, CpuidLeaf
from pyxen.cpu.unicorn import native_hooks
from pyxen.cpu.unicorn.engine import UnicornEngine
from pyxen.memory.machine import MachineMemory


@pytest.fixture
def memory() -> Iterator[MachineMemory]:
    memory = MachineMemory(16)
    yield memory
    memory.close()


def capabilities(memory: MachineMemory, native: bool | None) -> Capabilities:
    engine = UnicornEngine(memory, lambda leaf, subleaf: CpuidLeaf(), native=native)
    engine.close()
    return engine.capabilities


def test_switched_off_by_the_caller(memory: MachineMemory) -> None:
    found = capabilities(memory, False)
    assert (found.native, found.detail) == (False, "switched off")


def test_switched_off_by_the_environment(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYXEN_NATIVE", "0")
    found = capabilities(memory, None)
    assert (found.native, found.detail) == (False, "switched off by PYXEN_NATIVE=0")


def test_without_the_extension_the_plain_path_runs(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_hooks._load.cache_clear()
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name.endswith("_hot") else find_spec(name)
    )
    found = capabilities(memory, True)
    assert (found.native, found.detail) == (False, "the native hot path is not built")


def test_an_extension_of_another_version_is_not_used(
    memory: MachineMemory, monkeypatch: pytest.MonkeyPatch
) -> None:
    native_hooks._load.cache_clear()
    try:
        native_hooks._load()
    except native_hooks.NotBuilt:
        pytest.skip("not built")
    native_hooks._load.cache_clear()
    monkeypatch.setattr(native_hooks, "Hot", ctypes.c_uint64)
    found = capabilities(memory, True)
    assert (found.native, found.detail) == (
        False,
        "the native hot path was built from another version",
    )
