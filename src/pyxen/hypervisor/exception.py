"""What becomes of a processor exception: Xen's own work, an instruction to emulate, or the guest's.

Source: Intel SDM volume 3, chapter 6; public/arch-x86/xen.h (trap_info: who may use `int n`).
"""

from __future__ import annotations

from pyxen.abi import arch_x86_traps as arch
from pyxen.cpu.base import CpuidPolicy, Trap
from pyxen.hypervisor import emulate, page_table_write
from pyxen.hypervisor.domain import Domain
from pyxen.hypervisor.hypercall import continuation
from pyxen.hypervisor.page_types import Restart
from pyxen.hypervisor.privilege import DR6_STEP, debug_trap
from pyxen.hypervisor.trap import EFLAGS_TF, deliver_events, deliver_trap
from pyxen.hypervisor.vcpu import Vcpu
from pyxen.types import U64

_INT_BYTES = 2
_LEGACY_SYSCALL = 0x80
_WRITE_PROTECTED = arch.PFEC_page_present | arch.PFEC_write_access


def handle(d: Domain, v: Vcpu, trap: Trap, policy: CpuidPolicy) -> None:
    """Decide about one exception. Raises: DomainCrash."""
    if trap.software:
        deliver_trap(d, v, _software_interrupt(d, v, trap))
        return
    match trap.vector:
        case arch.X86_EXC_PF:
            if _page_table_write(d, trap):
                return
        case arch.X86_EXC_GP if trap.error_code == 0:
            continuation.begin(d)
            try:
                outcome = emulate.privileged(d, v)
            except Restart:
                return  # the same instruction again
            if outcome is not emulate.NOT_OURS:
                _emulated(d, v, outcome)
                return
        case arch.X86_EXC_UD:
            outcome = emulate.invalid_opcode(d, v, policy)
            if outcome is not emulate.NOT_OURS:
                _emulated(d, v, outcome)
                return
        case arch.X86_EXC_NM if v.task_switched:
            # The guest's handler expects TS clear, as Xen clears it.
            v.task_switched = False
            d.engine.set_task_switched(False)
    deliver_trap(d, v, trap)


def _emulated(d: Domain, v: Vcpu, outcome: emulate.Outcome) -> None:
    """After an instruction was emulated: its fault, its breakpoints, or the end of a step."""
    if isinstance(outcome, Trap):
        deliver_trap(d, v, outcome)
        return
    causes = outcome | (DR6_STEP if d.engine.regs.rflags & EFLAGS_TF else 0)
    if causes:
        deliver_trap(d, v, debug_trap(d, causes))


def stepped_over_hypercall(d: Domain, v: Vcpu) -> None:
    """The guest kernel has its trap flag set: the step ends on the way back to it.

    An event comes first, and its frame keeps the flag for later.
    """
    deliver_events(d, v)
    if d.engine.regs.rflags & EFLAGS_TF:
        deliver_trap(d, v, debug_trap(d, DR6_STEP))


def _page_table_write(d: Domain, trap: Trap) -> bool:
    """Whether it was a store to a read-only page table, which has been done now."""
    code = trap.error_code & (_WRITE_PROTECTED | arch.PFEC_user_mode)
    if d.engine.user_mode or code != _WRITE_PROTECTED:
        return False
    return page_table_write.emulate_write(d, trap.fault_address)


def _software_interrupt(d: Domain, v: Vcpu, trap: Trap) -> Trap:
    """`int n`: only where the guest's gate allows it, else #GP at the instruction.

    Vectors 3 and 4 are allowed to everybody, and so is 0x80 where there is a handler.
    """
    address = v.pv.traps_address[trap.vector]
    if trap.vector in (arch.X86_EXC_BP, arch.X86_EXC_OF) or (
        trap.vector == _LEGACY_SYSCALL and address
    ):
        return Trap(trap.vector, software=True)
    level = 3 if d.engine.user_mode else 1
    if address and v.pv.traps_flags[trap.vector] & v.pv.TRAP_DPL_MASK >= level:
        return Trap(trap.vector, software=True)
    regs = d.engine.regs
    regs.rip = (regs.rip - _INT_BYTES) & U64
    return Trap(arch.X86_EXC_GP, trap.vector << 3 | arch.X86_XEC_IDT)
