"""A scripted engine for tests of what lies above the engines."""

from pyxen.cpu.fake.engine import FakeEngine, FakeRegisters

__all__ = ["FakeEngine", "FakeRegisters"]
