"""Descriptors, callbacks, bases, debug registers, and the small hypercalls."""

from __future__ import annotations

import pytest
from pv_guest import DOMID, GDT, L4, NOT_MAPPED, TEXT, PvGuest

from pyxen.abi.arch_x86 import (
    SEGBASE_FS,
    SEGBASE_GS_KERNEL,
    SEGBASE_GS_USER,
    SEGBASE_GS_USER_SEL,
    TrapInfo,
)
from pyxen.abi.callback import (
    CALLBACKOP_register,
    CALLBACKOP_unregister,
    CallbackRegister,
    CALLBACKTYPE_event,
    CALLBACKTYPE_failsafe,
    CALLBACKTYPE_nmi,
    CALLBACKTYPE_syscall,
    CALLBACKTYPE_syscall32,
    CALLBACKTYPE_sysenter,
    CALLBACKTYPE_sysenter_deprecated,
    CallbackUnregister,
)
from pyxen.abi.errno import E
from pyxen.abi.features import XENFEAT_pae_pgdir_above_4gb
from pyxen.abi.physdev import PHYSDEVOP_set_iobitmap, PHYSDEVOP_set_iopl
from pyxen.abi.version import (
    XenFeatureInfo,
    XenPlatformParameters,
    XENVER_build_id,
    XENVER_capabilities,
    XENVER_changeset,
    XENVER_commandline,
    XENVER_compile_info,
    XENVER_extraversion,
    XENVER_get_features,
    XENVER_guest_handle,
    XENVER_pagesize,
    XENVER_platform_parameters,
    XENVER_version,
)
from pyxen.abi.xen import (
    VMASST_CMD_disable,
    VMASST_CMD_enable,
    VMASST_TYPE_m2p_strict,
    VMASST_TYPE_pae_extended_cr3,
)
from pyxen.hypervisor.page_audit import audit
from pyxen.memory import layout
from pyxen.memory.machine import XEN_PAGES
from pyxen.memory.pagetable import PTE_PRESENT, PTE_RW, PTE_USER

PFN = 100
MFN = XEN_PAGES + PFN
NOT_CANONICAL = 1 << 47
DATA = 0x00CF_F300_0000_FFFF
CODE = 0x00AF_FB00_0000_FFFF
CONFORMING = 0x00AF_FF00_0000_FFFF
CALL_GATE = 0x0000_EC00_E008_0000
LDT_DESCRIPTOR = 0x0000_E200_0000_0000
TSS = 0x0000_8900_0000_0000
ABSENT_GATE = 0x0000_6C00_E008_0000


# --- trap table -------------------------------------------------------------------------------


def test_set_trap_table(guest: PvGuest) -> None:
    table = (
        TrapInfo(vector=0, flags=0, cs=0xE033, address=TEXT),
        TrapInfo(vector=3, flags=3, cs=0xE033, address=TEXT + 1),
        TrapInfo(vector=255, flags=7, cs=0xE033, address=TEXT + 2),
        TrapInfo(),
        TrapInfo(vector=9, address=TEXT),
    )
    assert guest.call("set_trap_table", guest.put(*table)) == 0
    pv = guest.vcpu.pv
    assert [pv.traps_address[n] for n in (0, 3, 255, 9)] == [TEXT, TEXT + 1, TEXT + 2, 0]
    assert pv.traps_flags[255] == 7 | 0xE033 << 16
    assert guest.call("set_trap_table", 0) == 0
    assert not any(pv.traps_address)
    assert not any(pv.traps_flags)


@pytest.mark.parametrize("address", [NOT_CANONICAL, layout.M2P_VADDR, 0xFFFF_87FF_FFFF_FFFF])
def test_a_handler_must_be_the_guests(guest: PvGuest, address: int) -> None:
    table = guest.put(TrapInfo(vector=1, address=TEXT), TrapInfo(vector=2, address=address))
    assert guest.call("set_trap_table", table) == -E.INVAL
    assert guest.vcpu.pv.traps_address[1] == 0


def test_a_trap_table_without_an_end(guest: PvGuest) -> None:
    entry = TrapInfo(vector=5, address=TEXT).pack()
    guest.write(NOT_MAPPED - 16 * 20, entry * 20)
    assert guest.call("set_trap_table", NOT_MAPPED - 16 * 20) == -E.FAULT
    guest.write(guest.vaddr(PFN), entry * 300)
    assert guest.call("set_trap_table", guest.vaddr(PFN)) == 0
    assert guest.vcpu.pv.traps_address[5] == TEXT


# --- the GDT ----------------------------------------------------------------------------------


def window(guest: PvGuest, page: int) -> int:
    return guest.memory.read_u64(layout.descriptor_pte_maddr(0, page)) >> 12 & 0xFFFFF


def test_set_gdt(guest: PvGuest) -> None:
    guest.write(guest.vaddr(PFN), DATA.to_bytes(8, "little") + CODE.to_bytes(8, "little"))
    assert guest.call("set_gdt", guest.put(GDT, MFN), 513) == -E.INVAL, "it is mapped writable"
    assert guest.domain.frames.uses(GDT) == 0
    guest.protect(PFN)
    assert guest.call("set_gdt", guest.put(GDT, MFN), 513) == 0
    assert audit(guest.domain) == []
    entry = MFN << 12 | PTE_PRESENT | PTE_RW
    assert guest.call("update_va_mapping", guest.vaddr(PFN), entry, 0) == -E.BUSY
    assert [window(guest, n) for n in (0, 1, 2)] == [GDT, MFN, 0]
    assert window(guest, 14) == layout.GDT_RESERVED_PAGE
    assert guest.vcpu.gdt_frames == (GDT, MFN)
    assert None in guest.engine.flushes
    assert guest.call("set_gdt", 0, 0) == 0
    assert window(guest, 0) == 0
    assert guest.call("update_va_mapping", guest.vaddr(PFN), entry, 0) == 0


@pytest.mark.parametrize("entries", [7169, 1 << 31, (1 << 64) - 1])
def test_a_gdt_that_is_too_long(guest: PvGuest, entries: int) -> None:
    assert guest.call("set_gdt", guest.put(GDT), entries) == -E.INVAL


@pytest.mark.parametrize("mfn", [0, layout.SHARED_INFO, layout.GDT_L1, XEN_PAGES + 1030, 1 << 52])
def test_a_gdt_in_foreign_frames(guest: PvGuest, mfn: int) -> None:
    assert guest.call("set_gdt", guest.put(GDT, mfn), 513) == -E.INVAL
    assert window(guest, 0) == 0


def test_a_gdt_whose_list_cannot_be_read(guest: PvGuest) -> None:
    assert guest.call("set_gdt", NOT_MAPPED, 1) == -E.FAULT


@pytest.mark.parametrize(
    ("descriptor", "allowed"),
    [
        (0, True),
        (DATA, True),
        (CODE, True),
        (ABSENT_GATE, True),
        (0x0000_8000_0000_0000, True),
        (CONFORMING, True),
        (LDT_DESCRIPTOR, False),
        (TSS, False),
    ],
)
def test_which_descriptors_are_allowed(guest: PvGuest, descriptor: int, allowed: bool) -> None:
    wanted = 0 if allowed else -E.INVAL
    at = (MFN << 12) + 8 * 511
    assert guest.call("update_descriptor", at, descriptor) == wanted
    assert (guest.memory.read_u64(at) == descriptor) == (allowed or descriptor == 0)
    guest.memory.write_u64(at, descriptor)
    guest.protect(PFN)
    assert guest.call("set_gdt", guest.put(MFN), 1) == wanted, "all of the page counts"


@pytest.mark.parametrize(
    ("descriptor", "stored"),
    [
        pytest.param(0x00CF_9300_0000_FFFF, DATA, id="data of level 0"),
        pytest.param(0x00AF_DB00_0000_FFFF, CODE, id="code of level 2"),
        pytest.param(0x0000_8C00_0010_0000, 0x0000_8C00_0013_0000, id="gate of level 0"),
        pytest.param(0x1234_EC00_0017_5678, 0x1234_8C00_0017_5678, id="gate of level 3"),
        pytest.param(0x0000_EC00_E033_0000, 0x0000_8C00_E033_0000, id="gate to FLAT_KERNEL_CS"),
        pytest.param(0x0000_EC00_E030_0000, None, id="gate to FLAT_KERNEL_CS, level 0"),
        pytest.param(0x0000_EC00_E00F_0000, 0x0000_8C00_E00F_0000, id="gate to an LDT"),
        pytest.param(0x0000_EC00_E008_0000, None, id="gate to Xen's code"),
        pytest.param(0x0000_EC01_0010_0000, None, id="gate with parameters"),
        pytest.param(0x0000_E400_0010_0000, None, id="16-bit gate"),
    ],
)
def test_what_is_stored_for_a_descriptor(
    guest: PvGuest, descriptor: int, stored: int | None
) -> None:
    at = (MFN << 12) + 8 * 7
    assert guest.call("update_descriptor", at, descriptor) == (-E.INVAL if stored is None else 0)
    assert guest.memory.read_u64(at) == (stored or 0)
    guest.memory.write_u64(at, descriptor)
    guest.protect(PFN)
    result = guest.call("set_gdt", guest.put(MFN), 512)
    assert result == (-E.INVAL if stored is None else 0)
    assert guest.memory.read_u64(at) == (stored or descriptor)


@pytest.mark.parametrize(
    "maddr", [(MFN << 12) + 4, layout.GDT_RESERVED_PAGE << 12, L4 << 12, 1 << 60, (1 << 64) - 8]
)
def test_update_descriptor_elsewhere(guest: PvGuest, maddr: int) -> None:
    before = guest.memory.read(L4 << 12, 4096)
    assert guest.call("update_descriptor", maddr, DATA) == -E.INVAL
    assert guest.memory.read(L4 << 12, 4096) == before


# --- callbacks --------------------------------------------------------------------------------


def register(guest: PvGuest, kind: int, address: int = TEXT, flags: int = 0) -> int:
    op = CallbackRegister(type=kind, flags=flags, address=address)
    return guest.call("callback_op", CALLBACKOP_register, guest.put(op))


def test_callbacks(guest: PvGuest) -> None:
    assert register(guest, CALLBACKTYPE_event, TEXT + 1) == 0
    assert register(guest, CALLBACKTYPE_failsafe, TEXT + 2, 1) == 0
    assert register(guest, CALLBACKTYPE_syscall, TEXT + 3, 1) == 0
    assert register(guest, CALLBACKTYPE_nmi, TEXT + 4) == 0
    assert register(guest, CALLBACKTYPE_sysenter, TEXT + 8, 1) == 0
    assert register(guest, CALLBACKTYPE_syscall32, TEXT + 9) == 0
    pv, arch = guest.vcpu.pv, guest.vcpu.arch
    assert (arch.sysenter_callback, arch.sysenter_masks_events) == (TEXT + 8, True)
    assert arch.syscall32_callback == TEXT + 9
    assert pv.event_callback == TEXT + 1
    assert (pv.failsafe_callback, pv.failsafe_callback_flags) == (TEXT + 2, 1)
    assert (pv.syscall_callback, pv.syscall_callback_flags) == (TEXT + 3, 1)
    assert (pv.traps_address[2], pv.traps_flags[2]) == (TEXT + 4, 4 | 0xE033 << 16)
    assert guest.call("set_callbacks", TEXT + 5, TEXT + 6, TEXT + 7) == 0
    assert (pv.event_callback, pv.failsafe_callback) == (TEXT + 5, TEXT + 6)
    assert (pv.syscall_callback, pv.syscall_callback_flags) == (TEXT + 7, 0)


def test_callback_errors(guest: PvGuest) -> None:
    assert register(guest, CALLBACKTYPE_event, NOT_CANONICAL) == -E.INVAL
    assert register(guest, 99) == -E.NOSYS
    assert register(guest, CALLBACKTYPE_sysenter_deprecated) == -E.NOSYS
    assert guest.call("callback_op", CALLBACKOP_register, NOT_MAPPED) == -E.FAULT
    assert guest.call("callback_op", 99) == -E.NOSYS

    def unregister(kind: int) -> int:
        at = guest.put(CallbackUnregister(type=kind))
        return guest.call("callback_op", CALLBACKOP_unregister, at)

    register(guest, CALLBACKTYPE_nmi)
    assert unregister(CALLBACKTYPE_nmi) == 0
    assert (guest.vcpu.pv.traps_address[2], guest.vcpu.pv.traps_flags[2]) == (0, 0)
    for kind in (
        CALLBACKTYPE_event,
        CALLBACKTYPE_failsafe,
        CALLBACKTYPE_syscall,
        CALLBACKTYPE_sysenter,
        CALLBACKTYPE_syscall32,
    ):
        assert unregister(kind) == -E.INVAL
    assert unregister(99) == -E.NOSYS
    assert guest.call("callback_op", CALLBACKOP_unregister, NOT_MAPPED) == -E.FAULT


def test_nmi_op(guest: PvGuest) -> None:
    assert guest.call("nmi_op", 0, guest.put(TEXT)) == 0
    assert guest.vcpu.pv.traps_address[2] == TEXT
    assert guest.call("nmi_op", 1) == 0
    assert guest.vcpu.pv.traps_address[2] == 0
    assert guest.call("nmi_op", 0, guest.put(NOT_CANONICAL)) == -E.INVAL
    assert guest.call("nmi_op", 0, NOT_MAPPED) == -E.FAULT
    assert guest.call("nmi_op", 2) == -E.NOSYS


# --- bases, stack, FPU ------------------------------------------------------------------------


def test_segment_bases(guest: PvGuest) -> None:
    for which in (SEGBASE_FS, SEGBASE_GS_USER, SEGBASE_GS_KERNEL):
        assert guest.call("set_segment_base", which, 0x1000 + which) == 0
        assert guest.call("set_segment_base", which, NOT_CANONICAL) == -E.INVAL
    assert guest.regs.fs_base == 0x1000 + SEGBASE_FS
    assert guest.regs.gs_base == 0x1000 + SEGBASE_GS_KERNEL
    assert guest.vcpu.pv.gs_base_user == 0x1000 + SEGBASE_GS_USER
    assert guest.call("set_segment_base", 4, 0) == -E.INVAL


@pytest.mark.parametrize("selector", [0, 3, 0xFFF4, 0xFFF8, 0x1008])
def test_selectors_without_a_base(guest: PvGuest, selector: int) -> None:
    guest.vcpu.pv.gs_base_user = 5
    assert guest.call("set_segment_base", SEGBASE_GS_USER_SEL, selector) == 0
    assert guest.vcpu.pv.gs_base_user == 0


def test_the_base_of_a_selector(guest: PvGuest) -> None:
    guest.memory.write_u64((MFN << 12) + 8 * 6, 0x12CF_F334_5678_FFFF)
    guest.protect(PFN)
    guest.call("set_gdt", guest.put(MFN), 512)
    assert guest.call("set_segment_base", SEGBASE_GS_USER_SEL, 6 * 8 + 3) == 0
    assert guest.vcpu.pv.gs_base_user == 0x1234_5678
    assert guest.regs.selectors[5] == 6 * 8 + 3
    assert guest.regs.gs_base == 0, "the kernel's stays"
    assert guest.call("set_segment_base", SEGBASE_GS_USER_SEL, 1) == 0
    assert (guest.regs.selectors[5], guest.vcpu.pv.gs_base_user) == (1, 0)


@pytest.mark.parametrize(
    "descriptor",
    [
        pytest.param(0x12CF_7334_5678_FFFF, id="absent"),
        pytest.param(0x1200_8C34_5678_FFFF, id="call gate"),
        pytest.param(0x12CF_F834_5678_FFFF, id="execute only"),
    ],
)
def test_a_selector_that_faults_becomes_null(guest: PvGuest, descriptor: int) -> None:
    guest.memory.write_u64((MFN << 12) + 8 * 6, descriptor)
    guest.call("set_gdt", guest.put(MFN), 512)
    guest.regs.selectors[5] = guest.vcpu.pv.gs_base_user = 5
    assert guest.call("set_segment_base", SEGBASE_GS_USER_SEL, 6 * 8) == 0
    assert (guest.regs.selectors[5], guest.vcpu.pv.gs_base_user) == (0, 0)


def test_stack_switch(guest: PvGuest) -> None:
    assert guest.call("stack_switch", 0x1_E02B, TEXT) == 0
    assert (guest.vcpu.pv.kernel_ss, guest.vcpu.pv.kernel_sp) == (0xE02B, TEXT)


def test_fpu_taskswitch(guest: PvGuest) -> None:
    for on in (1, 77, 0):
        assert guest.call("fpu_taskswitch", on) == 0
        assert guest.engine.vcpu.task_switched == guest.vcpu.task_switched == bool(on)


# --- debug registers --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "value", "result", "kept"),
    [
        (0, TEXT, 0, TEXT),
        (3, 0x1000, 0, 0x1000),
        (1, 0, 0, 0),
        (0, layout.M2P_VADDR, -E.PERM, 0),
        (2, NOT_CANONICAL, -E.PERM, 0),
        (6, 0xFFFF_FFFF, 0, 0xFFFF_EFFF),
        (6, 0, 0, 0xFFFF_0FF0),
        (4, 0, 0, 0xFFFF_0FF0),
        (6, 1 << 32, -E.INVAL, 0),
        (7, 0, 0, 0x400),
        (7, 0xFFFF_0000 & ~0x2222_0000, 0, 0xDDDD_0400),
        (5, 1, 0, 0x401),
        (7, 1 << 13, -E.PERM, 0),
        (7, 1 << 32, -E.INVAL, 0),
        (7, 0x0002_0001, -E.PERM, 0),
        (7, 0x0002_0000, 0, 0x2_0400),
        (8, 0, -E.NODEV, 0),
        (15, 0, -E.NODEV, 0),
        (1 << 63, 0, -E.NODEV, 0),
    ],
)
def test_debug_registers(guest: PvGuest, register: int, value: int, result: int, kept: int) -> None:
    assert guest.call("set_debugreg", register, value) == result
    if result != -E.NODEV:
        seen = guest.call("get_debugreg", register) & (1 << 64) - 1
        assert seen == kept
        assert guest.engine.vcpu.debug_registers[{4: 6, 5: 7}.get(register, register)] == kept
    else:
        assert guest.call("get_debugreg", register) == -E.NODEV


# --- assists, physdev, console, version -------------------------------------------------------


def test_vm_assist(guest: PvGuest) -> None:
    everything = {0, 1, 2, 3, 4, 5, 32}
    for kind in everything:
        assert guest.call("vm_assist", VMASST_CMD_enable, kind) == 0
    assert guest.domain.vm_assists == everything
    assert guest.domain.pv.architectural_iopl
    assert guest.engine.vcpu.port_access == (True, False), "the kernel is level 0 then"
    assert guest.call("vm_assist", VMASST_CMD_disable, 4) == 0
    assert not guest.domain.pv.architectural_iopl
    assert guest.engine.vcpu.port_access == (False, False)
    assert guest.domain.vm_assists == everything - {4}
    for kind in (6, 31, 33, 63, 64, 99, (1 << 32) - 1):
        assert guest.call("vm_assist", VMASST_CMD_enable, kind) == -E.INVAL
        assert guest.call("vm_assist", 2, kind) == -E.INVAL
    assert guest.call("vm_assist", 2, 4) == -E.NOSYS


def test_m2p_strict_hides_the_m2p_from_user_mode(guest: PvGuest) -> None:
    def user_may_read(l4: int) -> bool:
        at = (l4 << 12) + 8 * layout.M2P_SLOT
        for _ in range(4):
            entry = guest.memory.read_u64(at)
            if not entry & PTE_USER:
                return False
            at = entry & 0xF_FFFF_FFFF_F000
        return True

    assert user_may_read(L4)
    assert guest.call("vm_assist", VMASST_CMD_enable, VMASST_TYPE_m2p_strict) == 0
    assert not user_may_read(L4)
    assert guest.engine.flushes, "the processor may have seen the old entry"
    guest.memory.write_u64((L4 << 12) + 8 * layout.M2P_SLOT, layout.M2P_SLOT_ENTRY)
    guest.domain.set_base_pointer(guest.vcpu, L4)
    assert not user_may_read(L4), "a table that is loaded later"
    assert guest.call("vm_assist", VMASST_CMD_disable, VMASST_TYPE_m2p_strict) == 0
    assert user_may_read(L4)


def test_physdev_op(guest: PvGuest) -> None:
    assert guest.call("physdev_op", PHYSDEVOP_set_iopl, guest.put(3)) == 0
    assert guest.vcpu.pv.iopl == 3
    assert guest.engine.vcpu.port_access == (True, True)
    assert guest.call("physdev_op", PHYSDEVOP_set_iopl, guest.put(1)) == 0
    assert guest.engine.vcpu.port_access == (True, False)
    assert guest.call("physdev_op", PHYSDEVOP_set_iopl, guest.put(4)) == -E.INVAL
    assert guest.call("physdev_op", PHYSDEVOP_set_iobitmap, guest.put(0, 65536)) == 0
    assert guest.call("physdev_op", PHYSDEVOP_set_iobitmap, guest.put(0, 65537)) == -E.INVAL
    bad = guest.put(layout.M2P_VADDR, 8)
    assert guest.call("physdev_op", PHYSDEVOP_set_iobitmap, bad) == -E.INVAL
    for command in (PHYSDEVOP_set_iopl, PHYSDEVOP_set_iobitmap):
        assert guest.call("physdev_op", command, NOT_MAPPED) == -E.FAULT


def test_console_io_keeps_the_last_words(guest: PvGuest) -> None:
    for n in range(40):
        at = guest.put(f"line {n} of what it said\n".encode())
        assert guest.call("console_io", 0, 25, at) == -E.PERM
    assert b"line 39" in guest.domain.last_words
    assert len(guest.domain.last_words) <= 1024
    assert guest.call("console_io", 0, (1 << 64) - 1, guest.vaddr(PFN)) == -E.PERM
    assert guest.call("console_io", 0, 10, NOT_MAPPED) == -E.PERM
    assert guest.call("console_io", 1, 10, guest.vaddr(PFN)) == -E.PERM
    assert guest.call("console_io", 2) == -E.PERM, "who asks is checked before what is asked"


def test_xen_version(guest: PvGuest) -> None:
    assert guest.call("xen_version", XENVER_version) == 4 << 16 | 17
    assert guest.call("xen_version", XENVER_pagesize) == 4096
    assert guest.call("xen_version", XENVER_pagesize, guest.put(0)) == -E.INVAL
    assert guest.call("xen_version", XENVER_build_id) == -E.PERM
    assert guest.call("xen_version", 99) == -E.NOSYS


@pytest.mark.parametrize(
    ("command", "begin", "length"),
    [
        (XENVER_extraversion, b".", 16),
        (XENVER_capabilities, b"xen-3.0-x86_64", 1024),
        (XENVER_changeset, b"", 64),
        (XENVER_commandline, b"<denied>\0", 9),
        (XENVER_guest_handle, (0x1234).to_bytes(16, "big"), 16),
        (XENVER_compile_info, b"pyxen", 144),
        (XENVER_platform_parameters, XenPlatformParameters(virt_start=layout.M2P_VADDR).pack(), 8),
    ],
)
def test_version_texts(guest: PvGuest, command: int, begin: bytes, length: int) -> None:
    at = guest.vaddr(PFN)
    guest.write(at, b"\xff" * 2048)
    assert guest.call("xen_version", command, at) == 0
    assert guest.read(at, len(begin)) == begin
    assert guest.read(at + length, 1) == b"\xff", "not a byte more than the structure has"
    assert guest.call("xen_version", command, NOT_MAPPED - length + 1) == -E.FAULT


def test_features(guest: PvGuest) -> None:
    result, info = guest.op("xen_version", XENVER_get_features, XenFeatureInfo())
    assert result == 0
    # Of Xen 4.17 to a PV domain: mmu_pt_update_preserve_ad, highmem_assist,
    # gnttab_map_avail_bits, memory_op_vnode_supported, direct_mapped.
    assert info.submap == 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 17
    assert guest.call("vm_assist", VMASST_CMD_enable, VMASST_TYPE_pae_extended_cr3) == 0
    _, info = guest.op("xen_version", XENVER_get_features, XenFeatureInfo())
    assert info.submap >> XENFEAT_pae_pgdir_above_4gb & 1
    assert guest.op("xen_version", XENVER_get_features, XenFeatureInfo(submap_idx=1))[0] == -E.INVAL
    assert guest.call("xen_version", XENVER_get_features, NOT_MAPPED) == -E.FAULT
    assert guest.domain.domid == DOMID
