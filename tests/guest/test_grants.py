"""Grants as guest code sees them: the engine's view of memory follows the hypervisor's."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from pyxen.abi.grant_table import (
    GNTMAP_application_map,
    GNTMAP_host_map,
    GNTMAP_readonly,
    GnttabCopy,
    GnttabCopyPtr,
    GnttabMapGrantRef,
    GNTTABOP_copy,
    GNTTABOP_map_grant_ref,
    GNTTABOP_set_version,
    GNTTABOP_unmap_and_replace,
    GNTTABOP_unmap_grant_ref,
    GnttabSetVersion,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
    GTF_permit_access,
)
from pyxen.abi.xen import DOMID_SELF
from pyxen.memory import layout

from ..diff.twins import (
    CALLBACKS,
    DATA,
    FAULT_ENTRY,
    KERNEL_CODE,
    KERNEL_L1,
    NAMED,
    STACK_TOP,
    UD2,
    Twin,
    kernel,
    mfn,
)
from .conftest import ENGINES

HYPERCALL = bytes.fromhex("b814000000 0f05")  # mov eax, 20; syscall
READ = bytes.fromhex("488b0b")  # mov rcx, [rbx]
WRITE = bytes.fromhex("48894b08")  # mov [rbx+8], rcx
CALL = bytes.fromhex("ffd3")  # call rbx
RETURNS_1 = bytes.fromhex("b901000000 c3")  # mov ecx, 1; ret
RETURNS_2 = bytes.fromhex("b902000000 c3")
GREF = 8
WINDOW, GRANTED, ELSEWHERE = 200, NAMED, NAMED + 1
ARGUMENT = kernel(DATA)
WORD = 0x1234_5678_9ABC_DEF0


@pytest.fixture(params=ENGINES)
def twin(request: pytest.FixtureRequest) -> Iterator[Twin]:
    made = Twin(native=request.param == "unicorn-native")
    if made.engine.capabilities.native != (request.param == "unicorn-native"):
        made.close()
        pytest.skip(made.engine.capabilities.detail)
    made.domain.grants.seed(GREF, made.domain.domid, mfn(GRANTED))  # type: ignore[arg-type]
    yield made
    made.close()


def run(twin: Twin, code: bytes, **registers: int) -> bool:
    """Kernel code up to its end; False if it ended in a page fault."""
    twin.put(kernel(KERNEL_CODE), code + UD2)
    twin.engine.enter_kernel_mode()
    registers = {"rsp": STACK_TOP, "rip": kernel(KERNEL_CODE), **registers}
    for name, value in registers.items():
        setattr(twin.engine.regs, name, value)
    assert twin.run() == "end"
    rip = twin.engine.regs.rip
    assert rip in (kernel(KERNEL_CODE) + len(code), CALLBACKS + 16 * FAULT_ENTRY)
    return rip == kernel(KERNEL_CODE) + len(code)


def grant_op(twin: Twin, command: int, argument: bytes) -> bytes:
    """One operation by guest code; the structure afterwards."""
    twin.put(ARGUMENT, argument)
    assert run(twin, HYPERCALL, rdi=command, rsi=ARGUMENT, rdx=1)
    assert twin.engine.regs.rax == 0
    return twin.memory.read(mfn(DATA) << 12, len(argument))


def map_grant(twin: Twin, flags: int = GNTMAP_host_map) -> int:
    """Map at WINDOW, whose entry is taken away first; the handle."""
    twin.set_entry(KERNEL_L1, WINDOW, 0)
    twin.engine.flush_page(kernel(WINDOW))
    wanted = GnttabMapGrantRef(host_addr=kernel(WINDOW), flags=flags, ref=GREF, dom=1)
    done = GnttabMapGrantRef.unpack(grant_op(twin, GNTTABOP_map_grant_ref, wanted.pack()))
    assert done.status == 0
    return done.handle


@pytest.mark.parametrize("version", [1, 2])
def test_a_mapping_is_there_until_it_is_unmapped(twin: Twin, version: int) -> None:
    asked = GnttabSetVersion(version=version)
    grant_op(twin, GNTTABOP_set_version, asked.pack())
    twin.domain.grants.seed(GREF, twin.domain.domid, mfn(GRANTED))  # type: ignore[arg-type]
    twin.put(kernel(GRANTED), WORD.to_bytes(8, "little"))
    assert run(twin, READ, rbx=kernel(WINDOW))
    handle = map_grant(twin)
    assert run(twin, READ, rbx=kernel(WINDOW))
    assert twin.engine.regs.rcx == WORD
    assert run(twin, WRITE, rbx=kernel(WINDOW), rcx=~WORD & (1 << 64) - 1)
    assert twin.memory.read_u64((mfn(GRANTED) << 12) + 8) == ~WORD & (1 << 64) - 1
    undo = GnttabUnmapGrantRef(host_addr=kernel(WINDOW), handle=handle)
    done = grant_op(twin, GNTTABOP_unmap_grant_ref, undo.pack())
    assert GnttabUnmapGrantRef.unpack(done).status == 0
    assert not run(twin, READ, rbx=kernel(WINDOW)), "nothing of it is left in the TLB"


def test_a_read_only_mapping(twin: Twin) -> None:
    map_grant(twin, GNTMAP_host_map | GNTMAP_application_map | GNTMAP_readonly)
    assert run(twin, READ, rbx=kernel(WINDOW))
    assert not run(twin, WRITE, rbx=kernel(WINDOW), rcx=WORD)
    assert twin.memory.read_u64((mfn(GRANTED) << 12) + 8) == 0


def test_a_mapping_is_not_executed(twin: Twin) -> None:
    twin.put(kernel(GRANTED), RETURNS_1)
    map_grant(twin)
    assert not run(twin, CALL, rbx=kernel(WINDOW))


def test_what_replaces_a_mapping(twin: Twin) -> None:
    twin.put(kernel(ELSEWHERE), WORD.to_bytes(8, "little"))
    handle = map_grant(twin)
    assert run(twin, READ, rbx=kernel(WINDOW))
    assert run(twin, READ, rbx=kernel(ELSEWHERE))
    undo = GnttabUnmapAndReplace(
        host_addr=kernel(WINDOW), new_addr=kernel(ELSEWHERE), handle=handle
    )
    done = grant_op(twin, GNTTABOP_unmap_and_replace, undo.pack())
    assert GnttabUnmapAndReplace.unpack(done).status == 0
    assert run(twin, READ, rbx=kernel(WINDOW))
    assert twin.engine.regs.rcx == WORD
    assert not run(twin, READ, rbx=kernel(ELSEWHERE))


def test_code_that_is_copied_over(twin: Twin) -> None:
    """The engine has translated what was there before."""
    twin.put(kernel(GRANTED), RETURNS_1)
    twin.put(kernel(ELSEWHERE), RETURNS_2)
    assert run(twin, CALL, rbx=kernel(GRANTED))
    assert twin.engine.regs.rcx == 1
    wanted = GnttabCopy(
        source=GnttabCopyPtr(u=mfn(ELSEWHERE), domid=DOMID_SELF),
        dest=GnttabCopyPtr(u=GREF, domid=DOMID_SELF),
        len=len(RETURNS_2),
        flags=2,
    )
    done = grant_op(twin, GNTTABOP_copy, wanted.pack())
    assert GnttabCopy.unpack(done).status == 0
    assert run(twin, CALL, rbx=kernel(GRANTED))
    assert twin.engine.regs.rcx == 2


def test_a_guest_that_writes_its_own_entries(twin: Twin) -> None:
    """The table's frame is mapped by the guest as Linux does, and what it writes there counts."""
    entry = mfn(layout.GRANT_FRAMES - 0x1000) << 12
    twin.set_entry(KERNEL_L1, WINDOW + 1, entry | 0x63)
    twin.engine.flush_page(kernel(WINDOW + 1))
    word = GTF_permit_access | mfn(ELSEWHERE) << 32
    at = kernel(WINDOW + 1) + 8 * 9 - 8
    assert run(twin, WRITE, rbx=at, rcx=word)
    assert twin.domain.grants.begin(9, write=True) == mfn(ELSEWHERE)  # type: ignore[arg-type]
    assert run(twin, READ, rbx=at + 8)
    assert twin.engine.regs.rcx & 0x18 == 0x18, "reading, writing"
