"""The scripted engine keeps what it was told."""

from pyxen.cpu.base import HYPERCALL, EngineFailure, Exit, Trap
from pyxen.cpu.fake import FakeEngine
from pyxen.types import VcpuId


def test_the_script_is_what_run_returns() -> None:
    engine = FakeEngine()
    engine.add_vcpu(VcpuId(0))

    def fault() -> Exit:
        engine.regs.rip = 0x1000
        return Trap(14, 2, 0x5000)

    engine.script += [HYPERCALL, fault]
    assert engine.run() is HYPERCALL
    assert engine.run() == Trap(14, 2, 0x5000)
    assert engine.regs.rip == 0x1000
    assert isinstance(engine.run(), EngineFailure)


def test_each_vcpu_has_its_own_state() -> None:
    engine = FakeEngine()
    for vcpu_id in (VcpuId(0), VcpuId(1)):
        engine.add_vcpu(vcpu_id)
    engine.regs.rax = 5
    engine.enter_user_mode(0xE033, 0xE02B)
    engine.set_cr3(0x1000)
    engine.select(VcpuId(1))
    assert (engine.regs.rax, engine.user_mode, engine.vcpu.cr3) == (0, False, 0)
    engine.load(VcpuId(1), engine.save(VcpuId(0)))
    assert (engine.regs.rax, engine.user_mode, engine.vcpu.cr3) == (5, True, 0x1000)
    assert engine.regs.selector(1) == 0xE033


def test_registers_have_the_numbers_of_machine_code() -> None:
    engine = FakeEngine()
    engine.add_vcpu(VcpuId(0))
    regs = engine.regs
    regs.rcx, regs.r15 = 1, 2
    assert (regs.gpr(1), regs.gpr(15)) == (1, 2)
    regs.set_gpr(4, -1)
    assert regs.rsp == (1 << 64) - 1
