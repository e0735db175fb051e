"""Events and what user mode sees of the M2P, through the engine: the native path on and off."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from pyxen.abi._struct import XenStruct
from pyxen.abi.event_channel import (
    EvtchnBindIpi,
    EvtchnExpandArray,
    EvtchnInitControl,
    EVTCHNOP_bind_ipi,
    EVTCHNOP_expand_array,
    EVTCHNOP_init_control,
    EVTCHNOP_send,
)
from pyxen.abi.xen import VMASST_CMD_disable, VMASST_CMD_enable, VMASST_TYPE_m2p_strict
from pyxen.hypervisor.hypercall import continuation, table
from pyxen.memory import layout

from ..diff.twins import (
    CALLBACKS,
    DATA,
    EVENT_ENTRY,
    FAULT_ENTRY,
    KERNEL_CODE,
    STACK_TOP,
    UD2,
    USER,
    USER_CODE,
    USER_CS,
    USER_SS,
    Twin,
    kernel,
    mfn,
)
from .conftest import ENGINES

NR_vm_assist, NR_iret, NR_event_channel_op = 21, 23, 32
SYSCALL = b"\x0f\x05"
ARGUMENT, CONTROL, WORDS = kernel(DATA), mfn(DATA + 1), mfn(DATA + 2)
PENDING_AND_LINKED = 5 << 29
EFLAGS_IF = 1 << 9


@pytest.fixture(params=ENGINES)
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    native = request.param == "unicorn-native"
    made = Twin(native)
    try:
        if native and not made.engine.capabilities.native:
            pytest.skip(made.engine.capabilities.detail)
        yield made
    finally:
        made.close()


def call(twin: Twin, number: int, *arguments: int) -> int:
    """A hypercall that the test makes for the guest."""
    continuation.begin(twin.domain)
    rest = tuple(arguments) + (0,) * (5 - len(arguments))
    return table.call(twin.domain, twin.vcpu, number, rest)


def event_op(twin: Twin, command: int, structure: XenStruct) -> bytes:
    twin.put(ARGUMENT, structure.pack())
    assert call(twin, NR_event_channel_op, command, ARGUMENT) == 0
    at = mfn(DATA) << 12
    return bytes(twin.memory.bytes[at : at + structure.SIZE])


def use_fifo(twin: Twin) -> None:
    event_op(twin, EVTCHNOP_init_control, EvtchnInitControl(control_gfn=CONTROL))
    event_op(twin, EVTCHNOP_expand_array, EvtchnExpandArray(array_gfn=WORDS))


def bind_ipi(twin: Twin) -> int:
    return EvtchnBindIpi.unpack(event_op(twin, EVTCHNOP_bind_ipi, EvtchnBindIpi())).port


def event_word(twin: Twin, port: int) -> int:
    return twin.memory.dwords[(WORDS << 10) + port]


def run_send(twin: Twin, port: int, after: bytes) -> None:
    """The kernel sends to a port and goes on with `after`; until UD2."""
    twin.put(ARGUMENT, port.to_bytes(4, "little"))
    code = b"\xb8" + struct.pack("<I", NR_event_channel_op)  # mov eax, nr
    code += b"\xbf" + struct.pack("<I", EVTCHNOP_send)  # mov edi, command
    code += b"\x48\xbe" + struct.pack("<Q", ARGUMENT)  # mov rsi, argument
    twin.put(kernel(KERNEL_CODE), code + SYSCALL + after)
    twin.engine.regs.rip, twin.engine.regs.rsp = kernel(KERNEL_CODE), STACK_TOP
    assert twin.run() == "end"


def at_entry(twin: Twin, entry: int) -> bool:
    return bool(twin.engine.regs.rip == CALLBACKS + 16 * entry)


@pytest.mark.parametrize("fifo", [False, True], ids=("two-level", "fifo"))
def test_an_ipi_interrupts_the_kernel_behind_the_hypercall(twin: Twin, fifo: bool) -> None:
    if fifo:
        use_fifo(twin)
    port = bind_ipi(twin)
    twin.vcpu.upcall_mask = 0
    run_send(twin, port, UD2)
    assert at_entry(twin, EVENT_ENTRY)
    assert twin.vcpu.upcall_mask == 1
    top = (twin.engine.regs.rsp - kernel(0)) + (mfn(0) << 12)
    rip = twin.memory.read_u64(top + 16)
    assert rip == kernel(KERNEL_CODE) + 22, "behind SYSCALL"
    if fifo:
        assert event_word(twin, port) == PENDING_AND_LINKED
        assert twin.memory.dwords[CONTROL << 10] == 1 << 7
        assert twin.memory.dwords[(CONTROL << 10) + 2 + 7] == port


def test_a_masked_upcall_comes_with_the_iret_that_unmasks(twin: Twin) -> None:
    use_fifo(twin)
    ports = [bind_ipi(twin) for _ in range(3)]
    twin.vcpu.upcall_mask = 1
    for port in ports:
        run_send(twin, port, UD2)
        assert not at_entry(twin, EVENT_ENTRY)
    links = [event_word(twin, port) for port in ports]
    assert links == [PENDING_AND_LINKED | ports[1], PENDING_AND_LINKED | ports[2], 5 << 29]
    target = kernel(KERNEL_CODE, 0x100)
    twin.put(target, UD2)
    frame = struct.pack("<9Q", 0, 0, 0, 0, target, 0xE030, EFLAGS_IF | 2, STACK_TOP, 0xE02B)
    twin.put(STACK_TOP - len(frame), frame)
    code = b"\xb8" + struct.pack("<I", NR_iret) + SYSCALL
    twin.put(kernel(KERNEL_CODE), code)
    twin.engine.regs.rip, twin.engine.regs.rsp = kernel(KERNEL_CODE), STACK_TOP - len(frame)
    assert twin.run() == "end"
    assert at_entry(twin, EVENT_ENTRY)
    assert twin.memory.dwords[(CONTROL << 10) + 2 + 7] == ports[0]


def test_user_mode_reads_the_m2p_unless_the_guest_is_strict(twin: Twin) -> None:
    twin.put(kernel(USER_CODE), b"\x48\x8b\x06" + UD2)  # mov rax, [rsi]

    def read_m2p() -> bool:
        """Whether user mode can; the engine may have the entry in its TLB."""
        twin.engine.enter_user_mode(USER_CS, USER_SS)
        regs = twin.engine.regs
        regs.rip, regs.rsi, regs.rax = USER, layout.M2P_VADDR + 8 * mfn(5), 77
        assert twin.run() == "end"
        if at_entry(twin, FAULT_ENTRY):
            return False
        assert (regs.rip, regs.rax) == (USER + 3, 5)
        return True

    assert read_m2p()
    assert call(twin, NR_vm_assist, VMASST_CMD_enable, VMASST_TYPE_m2p_strict) == 0
    assert not read_m2p()
    assert call(twin, NR_vm_assist, VMASST_CMD_disable, VMASST_TYPE_m2p_strict) == 0
    assert read_m2p()
