"""The native hot path does what the hypervisor does: same start, random operations, same result."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator

import pytest

from pyxen.cpu.base import Capabilities
from pyxen.hypervisor import privilege
from pyxen.hypervisor.page_audit import audit
from pyxen.hypervisor.tracing import ALL, Record, Tracing
from pyxen.memory.pagetable import PTE_NX, PTE_PRESENT, PTE_RW, PTE_USER

from .twins import (
    CALLBACKS,
    DATA,
    EVENT_ENTRY,
    GP_ENTRY,
    GUEST_PAGES,
    KERNEL_CODE,
    KERNEL_L1,
    L4,
    NAMED,
    SPARE_TABLES,
    STACK_TOP,
    UD2,
    USER,
    USER_CODE,
    USER_CS,
    USER_SS,
    Twin,
    different_page,
    kernel,
    mfn,
    twins,
)

SYSCALL = b"\x0f\x05"
NR_mmu_update, NR_stack_switch, NR_multicall, NR_update_va_mapping = 1, 3, 13, 14
NR_xen_version, NR_iret, NR_set_segment_base, NR_mmuext_op = 17, 23, 25, 26
DOMID_SELF = 0x7FF0
ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8")
RDI, RSI = 7, 6
ROUNDS = 400

Pair = tuple[Twin, Twin]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with twins() as two:
        capabilities: Capabilities = two[1].engine.capabilities
        if not capabilities.native:
            pytest.skip(capabilities.detail)
        yield two


def both(pair: Pair, do: Callable[[Twin], None]) -> None:
    for twin in pair:
        do(twin)


def compare(pair: Pair, context: object, *, arguments_may_differ: bool = False) -> None:
    """Everything is the same; RDI and RSI need not be after a continued hypercall."""
    states = [twin.state() for twin in pair]
    if arguments_may_differ:
        for state in states:
            state["cpu"].gprs[RDI] = state["cpu"].gprs[RSI] = 0  # type: ignore[attr-defined]
            state["last"] = [(r.number, r.result) for r in state["last"]]  # type: ignore[attr-defined]
    plain, native = states
    for key, value in plain.items():
        assert native[key] == value, (key, context)
    frame = different_page(*pair)
    assert frame is None, (frame, context)
    assert not (wrong := audit(pair[1].domain)), (wrong[:5], context)


def run_both(pair: Pair, context: object, limit: int = 64, calls: int = 0, **how: bool) -> str:
    """calls: how many entries a multicall at DATA has, whose first arguments may differ, too."""
    ends = [twin.run(limit) for twin in pair]
    assert ends[0] == ends[1], context
    for twin in pair:
        for n in range(calls):
            twin.put(kernel(DATA, 64 * n + 16), bytes(16))
    compare(pair, context, **how)
    return ends[0]


def start_kernel(twin: Twin, code: bytes, rng_flags: int = 0) -> None:
    twin.put(kernel(KERNEL_CODE), code)
    twin.engine.enter_kernel_mode()
    twin.engine.regs.rip = kernel(KERNEL_CODE)
    twin.engine.regs.rsp = STACK_TOP
    twin.engine.regs.rflags = rng_flags
    twin.vcpu.upcall_mask = 1


def call(twin: Twin, number: int, arguments: tuple[int, ...]) -> None:
    """Prepare one hypercall followed by UD2."""
    start_kernel(twin, SYSCALL + UD2)
    twin.engine.regs.rax = number
    for name, value in zip(ARGUMENTS, (*arguments, 0, 0, 0, 0, 0), strict=False):
        setattr(twin.engine.regs, name, value & (1 << 64) - 1)


class Requests:
    """Random arguments: mostly sensible, and now and then all that a hostile guest may think of."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def frame(self) -> int:
        rng = self.rng
        return rng.choice(
            [
                *[mfn(NAMED + rng.randrange(64))] * 4,
                *[mfn(SPARE_TABLES + rng.randrange(16))] * 3,
                rng.choice([0, 0x10, 0x20, 0xC8, mfn(GUEST_PAGES), 0xF_FFFF, 1 << 39]),
            ]
        )

    def entry(self) -> int:
        rng = self.rng
        flags = rng.choice([0, 1, 3, 7, 0x27, 0x67, 0x63 | PTE_NX, 0x80 | 3])
        return self.frame() << 12 | flags

    def table_entry(self) -> int:
        """Machine address of an entry of a spare table, or of something that is none."""
        rng = self.rng
        spare = (mfn(SPARE_TABLES + rng.randrange(16)) << 12) + rng.randrange(512) * 8
        return rng.choice([*[spare] * 12, 0x20_000, 0xC8_000, 1 << 45, spare | 4])

    def mmu_updates(self) -> bytes:
        rng = self.rng
        count = rng.choice([1, 1, 2, 5, 32])
        commands = [0] * 8 + [2] * 4 + ([1, 3] if rng.random() < 0.2 else [])
        return b"".join(
            struct.pack("<QQ", self.table_entry() | rng.choice(commands), self.entry())
            for _ in range(count)
        )

    def mmuext_op(self) -> bytes:
        rng = self.rng
        command = rng.choice([0, 0, 1, 2, 3, 4, 4, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 15, 16, 99])
        frame = mfn(SPARE_TABLES + rng.randrange(4)) if rng.random() < 0.8 else self.frame()
        if command == 5:
            frame = rng.choice([mfn(L4), mfn(L4), 0, 0x10, 1 << 40])
        if command in (7, 9, 11):
            frame = rng.choice([kernel(DATA), USER, 1 << 63])
        return struct.pack("<IIQQ", command, rng.randrange(2), frame, mfn(NAMED))

    def one(self, twin_puts: Callable[[int, bytes], None], at: int) -> tuple[int, tuple[int, ...]]:
        """A hypercall; its records are put at `at`."""
        rng = self.rng
        number = rng.choice(
            [
                NR_mmu_update,
                NR_mmuext_op,
                NR_update_va_mapping,
                NR_stack_switch,
                NR_set_segment_base,
                NR_xen_version,
                77,
            ]
        )
        domid = rng.choice([DOMID_SELF] * 9 + [1, 7, DOMID_SELF | 1 << 32])
        if number == NR_mmu_update:
            records = self.mmu_updates()
            twin_puts(at, records)
            pdone = rng.choice([0, 0, 0, kernel(DATA, 0xFF0)])
            return number, (at, len(records) // 16, pdone, domid)
        if number == NR_mmuext_op:
            records = b"".join(self.mmuext_op() for _ in range(rng.choice([1, 1, 2, 3])))
            twin_puts(at, records)
            pdone = rng.choice([0, 0, 0, kernel(DATA, 0xFF0)])
            return number, (at, len(records) // 24, pdone, domid)
        if number == NR_update_va_mapping:
            vaddr = rng.choice([USER + 0x8000 + 0x1000 * rng.randrange(64), 0, 1 << 47, 1 << 40])
            return number, (vaddr, self.entry(), rng.randrange(4))
        if number == NR_stack_switch:
            return number, (0xE02B, STACK_TOP - 16 * rng.randrange(8))
        if number == NR_set_segment_base:
            base = rng.choice([0x7000, 0xFFFF_8880_0000_0000, 1 << 60, 3, 0x33])
            return number, (rng.randrange(5), base)
        return number, (rng.randrange(3), 0)


@pytest.mark.parametrize("seed", range(4))
def test_hypercalls(pair: Pair, seed: int) -> None:
    requests = Requests(seed)
    for n in range(ROUNDS):
        puts: list[tuple[int, bytes]] = []
        at = kernel(DATA, requests.rng.choice([0, 0x800, 0xFF8]))
        number, arguments = requests.one(lambda a, b, puts=puts: puts.append((a, b)), at)

        def prepare(
            twin: Twin,
            puts: list[tuple[int, bytes]] = puts,
            number: int = number,
            arguments: tuple[int, ...] = arguments,
        ) -> None:
            for where, data in puts:
                twin.put(where, data)
            call(twin, number, arguments)

        both(pair, prepare)
        context = (n, number, [hex(a) for a in arguments])
        assert run_both(pair, context, arguments_may_differ=True) == "end"
    native = pair[1].domain.pv.counters
    assert native["mmu_entry"] > ROUNDS // 20
    assert native["hypercall"] > ROUNDS // 4


@pytest.mark.parametrize("seed", range(4))
def test_multicalls(pair: Pair, seed: int) -> None:
    requests = Requests(100 + seed)
    for n in range(ROUNDS // 4):
        puts: list[tuple[int, bytes]] = []
        entries = b""
        calls = [
            requests.one(lambda a, b, puts=puts: puts.append((a, b)), kernel(DATA + 1 + i))
            for i in range(requests.rng.randrange(5))
        ]
        for number, arguments in calls:
            entries += struct.pack("<QQ6Q", number, 0xDEAD, *(*arguments, 0, 0, 0, 0, 0)[:6])
        puts.append((kernel(DATA), entries))

        def prepare(
            twin: Twin, puts: list[tuple[int, bytes]] = puts, count: int = len(calls)
        ) -> None:
            for where, data in puts:
                twin.put(where, data)
            call(twin, NR_multicall, (kernel(DATA), count))

        both(pair, prepare)
        end = run_both(pair, (n, calls), calls=len(calls), arguments_may_differ=True)
        assert end == "end"


def iret_frame(rng: random.Random) -> bytes:
    """An iret context, mostly one that a kernel would use."""
    target = rng.choice([USER, kernel(KERNEL_CODE, 0x400)])
    cs = rng.choice([0xE033, 0xE033, 0xE023, 0x33, 0x3]) if target == USER else 0xE030
    ss = rng.choice([USER_SS] * 4 + [0x2B, 0, 0xE033, 0x28])
    if rng.random() < 0.1:
        target = rng.choice([1 << 47, 0xFFFF_7FFF_FFFF_FFFF, 1 << 63])
    if rng.random() < 0.1:
        cs = rng.randrange(1 << 16) & ~3 | cs & 3
    back = rng.randrange(1 << 22) & 0x25_7ED5 | rng.choice([0, 0x200])
    how = rng.choice([0, 0x100])
    return struct.pack("<9Q", 1, 2, 3, how, target, cs, back, STACK_TOP - 512, ss)


@pytest.mark.parametrize("pending", [False, True])
@pytest.mark.parametrize("mask", [0, 1])
def test_system_calls_and_iret(pair: Pair, pending: bool, mask: int) -> None:
    rng = random.Random(mask)
    for n in range(100):
        flags = rng.randrange(1 << 22) & 0x24_4CD5
        gprs = [rng.getrandbits(64) for _ in range(16)]
        masks = rng.randrange(2)

        def start(
            twin: Twin, flags: int = flags, gprs: list[int] = gprs, masks: int = masks
        ) -> None:
            twin.put(kernel(USER_CODE), SYSCALL)
            for index, value in enumerate(gprs):
                twin.engine.regs.set_gpr(index, value)
            twin.vcpu.pv.syscall_callback_flags = masks
            twin.vcpu.upcall_mask = mask
            twin.memory.bytes[twin.vcpu.pv.vcpu_info_maddr] = pending
            if not twin.engine.user_mode:
                twin.vcpu.pv.gs_base_kernel = twin.engine.regs.gs_base
            twin.engine.enter_user_mode(USER_CS, USER_SS)
            twin.engine.regs.rflags = flags
            twin.engine.regs.rip = USER

        both(pair, start)
        assert run_both(pair, (n, hex(flags))) == "end"
        frame = iret_frame(rng)
        nmi = rng.random() < 0.1

        def leave(twin: Twin, frame: bytes = frame, nmi: bool = nmi) -> None:
            start_kernel(twin, SYSCALL)
            twin.put(kernel(KERNEL_CODE, 0x400), UD2)
            twin.put(kernel(USER_CODE), UD2)
            twin.engine.regs.rax = NR_iret
            twin.put(STACK_TOP - 1024, frame)
            twin.engine.regs.rsp = STACK_TOP - 1024
            twin.memory.bytes[twin.vcpu.pv.vcpu_info_maddr] = pending
            twin.vcpu.pv.nmi_masked = nmi

        both(pair, leave)
        assert run_both(pair, (n, frame.hex())) == "end"
    counters = pair[1].domain.pv.counters
    assert counters["iret"] > 0
    if pending:
        assert counters["upcall"] > 0
    if mask or not pending:  # else the event comes first
        assert counters["syscall"] > 0


def test_page_faults(pair: Pair) -> None:
    rng = random.Random(7)
    cases = []
    for user in (False, True):
        for entry in (0, mfn(NAMED) << 12 | PTE_PRESENT | PTE_USER, mfn(NAMED) << 12 | PTE_PRESENT):
            for code in (b"\x48\x8b\x06", b"\x48\x89\x06"):  # mov rax, [rsi]; mov [rsi], rax
                cases.append((user, entry, code))
    for user, entry, code in cases * 3:
        flags = rng.randrange(1 << 22) & 0x24_4CD5
        masked = rng.choice([0, 4])

        def start(
            twin: Twin,
            user: bool = user,
            entry: int = entry,
            code: bytes = code,
            flags: int = flags,
            masked: int = masked,
        ) -> None:
            start_kernel(twin, code + UD2)
            twin.put(kernel(USER_CODE), code + UD2)
            twin.set_entry(6, 64, entry)
            twin.engine.flush_tlb()
            twin.vcpu.pv.traps_flags[14] = masked
            twin.vcpu.upcall_mask = masked & 1
            if user:
                twin.engine.enter_user_mode(USER_CS, USER_SS)
                twin.engine.regs.rip = USER
            twin.engine.regs.rflags = flags
            twin.engine.regs.rsi = USER + 64 * 4096 + 8

        both(pair, start)
        assert run_both(pair, (user, hex(entry), code.hex())) == "end"
    assert pair[1].domain.pv.counters["page_fault"] > 0


# Instructions that write to [rsi]; each with lock where it may have one.
WRITES = {
    "mov [rsi], rax": "48 89 06",
    "mov [rsi], r9": "4c 89 0e",
    "mov [rsi], eax": "89 06",
    "mov [rsi], ax": "66 89 06",
    "mov [rsi], al": "88 06",
    "mov [rsi], sil": "40 88 36",
    "mov [rsi], ah": "88 26",
    "mov [rsi+8], rcx": "48 89 4e 08",
    "mov [rsi+0x10], rcx": "48 89 8e 10 00 00 00",
    "mov [rsi+rdi], rcx": "48 89 0c 3e",
    "mov [rsi+rdi*8+8], rcx": "48 89 4c fe 08",
    "mov qword [rsi], -1": "48 c7 06 ff ff ff ff",
    "mov qword [rsi], 0": "48 c7 06 00 00 00 00",
    "mov dword [rsi], 0x67": "c7 06 67 00 00 00",
    "mov byte [rsi], 3": "c6 06 03",
    "xchg [rsi], rax": "48 87 06",
    "xchg [rsi], edx": "87 16",
    "xchg [rsi], dl": "86 16",
    "lock cmpxchg [rsi], rcx": "f0 48 0f b1 0e",
    "ds cmpxchg [rsi], rcx": "3e 48 0f b1 0e",
    "cmpxchg [rsi], ecx": "0f b1 0e",
    "cmpxchg [rsi], cl": "0f b0 0e",
    "lock and [rsi], rax": "f0 48 21 06",
    "lock and byte [rsi], 0xfd": "f0 80 26 fd",
    "lock and dword [rsi], 0xfffffffd": "f0 83 26 fd",
    "and qword [rsi], -3": "48 83 26 fd",
    "and qword [rsi], imm32": "48 81 26 fd ff ff ff",
    "lock or [rsi], rax": "f0 48 09 06",
    "or byte [rsi], 0x20": "80 0e 20",
    "or [rsi], al": "08 06",
    "lock bts qword [rsi], 5": "f0 48 0f ba 2e 05",
    "lock btr qword [rsi], 1": "f0 48 0f ba 36 01",
    "lock btr [rsi], rcx": "f0 48 0f b3 0e",
    "bts [rsi], rcx": "48 0f ab 0e",
    "stosq": "48 ab",
    "rep stosq": "f3 48 ab",
    "rep stosd": "f3 ab",
    "add [rsi], rax": "48 01 06",
    "inc qword [rsi]": "48 ff 06",
    "movnti [rsi], rax": "48 0f c3 06",
    "mov [rsi+4], rax": "48 89 46 04",
}


@pytest.mark.parametrize("instruction", WRITES)
def test_page_table_writes(pair: Pair, instruction: str) -> None:
    rng = random.Random(instruction)
    requests = Requests(1)
    both(pair, lambda twin: twin.pin(SPARE_TABLES, 1))
    code = bytes.fromhex(WRITES[instruction])
    for n in range(24):
        old, new = requests.entry(), requests.entry()
        rax = rng.choice([old, new, 0, PTE_RW])
        slot = rng.randrange(8, 500)
        flags = rng.randrange(1 << 12) & 0xCD5

        def start(
            twin: Twin,
            old: int = old,
            new: int = new,
            rax: int = rax,
            slot: int = slot,
            flags: int = flags,
        ) -> None:
            start_kernel(twin, code + UD2, flags & ~0x400)
            regs = twin.engine.regs
            for index in range(16):
                if index != 4:
                    regs.set_gpr(index, 0)
            for i in range(4):
                twin.set_entry(SPARE_TABLES, slot + i, old)
            regs.rsi = kernel(SPARE_TABLES, slot * 8)
            regs.rax = rax
            regs.rcx = new if "rep" not in instruction and "bt" not in instruction else 3
            regs.rdx, regs.r9 = new, new
            if "stos" in instruction:
                regs.rdi = regs.rsi

        both(pair, start)
        run_both(pair, (instruction, n, hex(old), hex(new), hex(rax)))
    if instruction.startswith(("mov [rsi], rax", "xchg [rsi], rax", "lock and [rsi]")):
        assert pair[1].domain.pv.counters["page_table_write"] > 0


def test_a_whole_kernel_table_is_written_entry_by_entry(pair: Pair) -> None:
    """The guest's own mappings change under it, as fork does it: lock and on each entry."""
    # 1: lock and qword [rsi], -3; add rsi, 8; dec rcx; jnz 1b; ud2
    code = bytes.fromhex("f0 48 83 26 fd 48 83 c6 08 48 ff c9 75 f2 0f 0b")

    def start(twin: Twin) -> None:
        start_kernel(twin, code)
        twin.engine.regs.rsi = kernel(KERNEL_L1, NAMED * 8)
        twin.engine.regs.rcx = 64

    both(pair, start)
    assert run_both(pair, "loop", limit=100) == "end"
    assert pair[1].domain.pv.counters["page_table_write"] == 64


@pytest.mark.parametrize("iopl", [0, 1, 3])
@pytest.mark.parametrize("user", [False, True])
@pytest.mark.parametrize("code", ["fa", "fb", "f4", "66 fa", "e4 60", "0f 32", "0f 30", "0f 09"])
def test_privileged_instructions(pair: Pair, code: str, user: bool, iopl: int) -> None:
    def start(twin: Twin) -> None:
        start_kernel(twin, bytes.fromhex(code) + UD2)
        twin.put(kernel(USER_CODE), bytes.fromhex(code) + UD2)
        twin.vcpu.pv.iopl = iopl
        privilege.update_ports(twin.domain, twin.vcpu)
        twin.engine.regs.rcx = 0xC000_0080
        if user:
            twin.engine.enter_user_mode(USER_CS, USER_SS)
            twin.engine.regs.rip = USER

    both(pair, start)
    assert run_both(pair, code) == "end"
    counted = pair[1].domain.pv.counters["trap"]
    assert counted == (1 if code in ("fa", "fb") and not user and iopl else 0)


@pytest.mark.parametrize("code", ["fa", "48 8b 06", "48 89 06", "0f 05"])
@pytest.mark.parametrize("user", [False, True])
def test_with_the_trap_flag(pair: Pair, code: str, user: bool) -> None:
    def start(twin: Twin) -> None:
        start_kernel(twin, bytes.fromhex(code) + UD2, 0x100)
        twin.put(kernel(USER_CODE), bytes.fromhex(code) + UD2)
        twin.vcpu.pv.iopl = 1
        twin.vcpu.pv.traps_address[1] = CALLBACKS + 16 * GP_ENTRY
        twin.engine.regs.rsi = USER + 64 * 4096
        twin.engine.regs.rax = NR_set_segment_base
        if user:
            twin.engine.enter_user_mode(USER_CS, USER_SS)
            twin.engine.regs.rip = USER

    both(pair, start)
    assert run_both(pair, code) == "end"


@pytest.mark.parametrize("code", ["0f 05", "0f 34", "cd 80", "f1", "cc", "cd 20"])
@pytest.mark.parametrize("iopl", [False, True])
def test_32_bit_user_code(pair: Pair, code: str, iopl: bool) -> None:
    """What the native path must leave alone."""

    def start(twin: Twin) -> None:
        start_kernel(twin, b"")
        twin.put(kernel(USER_CODE), b"\xfd" + bytes.fromhex(code) + UD2)  # std
        for vector in (1, 3, 0x80):
            twin.vcpu.pv.traps_address[vector] = CALLBACKS + 16 * GP_ENTRY
        twin.vcpu.arch.syscall32_callback = CALLBACKS + 16 * EVENT_ENTRY
        twin.domain.pv.architectural_iopl = int(iopl)
        twin.vcpu.pv.iopl = 2
        twin.engine.enter_user_mode(0xE023, USER_SS, long_mode=False)
        twin.engine.regs.rip = USER

    both(pair, start)
    assert run_both(pair, code) == "end"


@pytest.mark.parametrize("code", ["48 8b 06", "0f 05"])
@pytest.mark.parametrize("iopl", [False, True])
def test_breakpoints(pair: Pair, code: str, iopl: bool) -> None:
    """A watched word on the way into the kernel, and RF on the way back."""

    def start(twin: Twin) -> None:
        start_kernel(twin, b"")
        twin.put(kernel(USER_CODE), bytes.fromhex(code) + UD2)
        twin.vcpu.pv.traps_address[1] = CALLBACKS + 16 * GP_ENTRY
        twin.domain.pv.architectural_iopl = int(iopl)
        engine = twin.engine
        engine.set_debug_register(0, USER)
        engine.set_debug_register(1, USER + 0x1000)
        engine.set_debug_register(7, 0x00F0_0405)
        engine.enter_user_mode(USER_CS, USER_SS)
        engine.regs.rip, engine.regs.rsi = USER, USER + 0x1000

    both(pair, start)
    assert run_both(pair, code) == "end"
    assert pair[1].engine.debug_register(6) & 0xF == 1
    for rflags in (0x1_0202, 0x202):
        frame = struct.pack("<9Q", 1, 2, 3, 0, USER, USER_CS, rflags, 0, USER_SS)

        def leave(twin: Twin, frame: bytes = frame) -> None:
            start_kernel(twin, SYSCALL)
            twin.engine.regs.rax = NR_iret
            twin.put(STACK_TOP - 1024, frame)
            twin.engine.regs.rsp = STACK_TOP - 1024
            twin.engine.set_debug_register(6, 0)

        both(pair, leave)
        assert run_both(pair, (code, rflags)) == "end"
        status = pair[1].engine.debug_register(6) & 0xF
        if code == "0f 05":
            assert status == (0 if rflags & 0x1_0000 else 1)
        else:
            assert status == (2 if rflags & 0x1_0000 else 1)


def test_slow_only_hands_on_every_exit(pair: Pair) -> None:
    pair[1].domain.pv.slow_only = 1
    both(pair, lambda twin: call(twin, NR_stack_switch, (0xE02B, STACK_TOP)))
    assert run_both(pair, "slow only") == "end"
    counters = pair[1].domain.pv.counters
    assert (counters["hypercall"], counters["slow"]) == (0, 2)  # the hypercall, and UD2


class Seen:
    """What a trace was told."""

    def __init__(self, names: frozenset[str]) -> None:
        self.names = names
        self.records: list[Record] = []

    def take(self, record: Record) -> None:
        self.records.append(record)


@pytest.mark.parametrize("names", [ALL, frozenset({"xen_version", "unknown", "pending"})])
def test_a_traced_domain_does_the_same(pair: Pair, names: frozenset[str]) -> None:
    """And each hypercall is seen that was asked for, whichever path the others take."""
    requests = Requests(200)
    native = pair[1]
    seen = Seen(names)
    Tracing(native.loop).add(seen)
    wanted = 0
    for n in range(ROUNDS // 4):
        puts: list[tuple[int, bytes]] = []
        number, arguments = requests.one(lambda a, b, puts=puts: puts.append((a, b)), kernel(DATA))
        wanted += names == ALL or number in (NR_xen_version, 77)

        def prepare(
            twin: Twin,
            puts: list[tuple[int, bytes]] = puts,
            number: int = number,
            arguments: tuple[int, ...] = arguments,
        ) -> None:
            for where, data in puts:
                twin.put(where, data)
            call(twin, number, arguments)

        both(pair, prepare)
        run_both(pair, (n, number, [hex(a) for a in arguments]))
    assert len([r for r in seen.records if r.kind == "hypercall"]) == wanted > 0
    assert (native.domain.pv.counters["hypercall"] == 0) == (names == ALL)
