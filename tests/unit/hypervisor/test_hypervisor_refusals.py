"""What a PV DomU may not do, or only in part: Xen 4.17's errors, in Xen's order of checks."""

from __future__ import annotations

import pytest
from pv_guest import DOMID, L1, NOT_MAPPED, NUMBERS, SELF, PvGuest

from pyxen.abi._struct import XenStruct
from pyxen.abi.domctl import (
    XEN_DOMCTL_createdomain,
    XEN_DOMCTL_getdomaininfo,
    XEN_DOMCTL_pausedomain,
    XEN_DOMCTL_shadow_op,
)
from pyxen.abi.errno import E
from pyxen.abi.hvm_op import (
    HVMOP_altp2m,
    HVMOP_flush_tlbs,
    HVMOP_get_mem_type,
    HVMOP_get_param,
    HVMOP_get_time,
    HVMOP_guest_request_vm_event,
    HVMOP_pagetable_dying,
    HVMOP_set_evtchn_upcall_vector,
    HVMOP_set_param,
    HVMOP_xentrace,
    XenHvmGetMemType,
    XenHvmGetTime,
    XenHvmPagetableDying,
    XenHvmParam,
    XenHvmXentrace,
)
from pyxen.abi.physdev import (
    MAP_PIRQ_TYPE_GSI,
    MAP_PIRQ_TYPE_MSI,
    MAP_PIRQ_TYPE_MULTI_MSI,
    PHYSDEVOP_IRQ_UNMASK_NOTIFY,
    PhysdevEoi,
    PhysdevGetFreePirq,
    PhysdevIrqStatusQuery,
    PhysdevManagePciExt,
    PhysdevMapPirq,
    PhysdevOp,
    PHYSDEVOP_eoi,
    PHYSDEVOP_free_irq_vector,
    PHYSDEVOP_get_free_pirq,
    PHYSDEVOP_irq_status_query,
    PHYSDEVOP_manage_pci_add_ext,
    PHYSDEVOP_map_pirq,
    PHYSDEVOP_pirq_eoi_gmfn_v1,
    PHYSDEVOP_pirq_eoi_gmfn_v2,
    PHYSDEVOP_set_iopl,
    PHYSDEVOP_setup_gsi,
    PHYSDEVOP_unmap_pirq,
    PhysdevPirqEoiGmfn,
    PhysdevSetupGsi,
    PhysdevUnmapPirq,
)
from pyxen.hypervisor.hypercall.physdev_op import NR_GSIS, NR_PIRQS
from pyxen.memory.frames import FrameType
from pyxen.memory.machine import XEN_PAGES

PFN = 100
ROOM = bytes(256)


def header(command: int, version: int, domid: int = 0) -> bytes:
    words = command.to_bytes(4, "little") + version.to_bytes(4, "little")
    return (words + domid.to_bytes(2, "little")).ljust(144, b"\0")


# --- domain 0 only ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "version"), [("domctl", 0x15), ("sysctl", 0x15), ("platform_op", 0x3000001)]
)
def test_the_version_is_checked_before_the_caller(guest: PvGuest, name: str, version: int) -> None:
    assert guest.call(name, NOT_MAPPED) == -E.FAULT
    assert guest.call(name, guest.put(header(3, version - 1))) == -E.ACCES
    assert guest.call(name, guest.put(header(3, version))) == -E.PERM


@pytest.mark.parametrize(
    ("command", "domid", "errno"),
    [
        (XEN_DOMCTL_pausedomain, DOMID, E.PERM),
        (XEN_DOMCTL_pausedomain, 0, E.PERM),
        (XEN_DOMCTL_pausedomain, 99, E.SRCH),
        (XEN_DOMCTL_pausedomain, SELF, E.SRCH),
        (XEN_DOMCTL_getdomaininfo, 99, E.PERM),
        (XEN_DOMCTL_createdomain, 99, E.PERM),
    ],
)
def test_domctl_looks_for_the_domain_first(
    guest: PvGuest, command: int, domid: int, errno: E
) -> None:
    assert guest.call("domctl", guest.put(header(command, 0x15, domid))) == -errno


def test_paging_domctl_cont(guest: PvGuest) -> None:
    name = "paging_domctl_cont"
    assert guest.call(name, NOT_MAPPED) == -E.FAULT
    assert guest.call(name, guest.put(header(XEN_DOMCTL_pausedomain, 0x15))) == -E.OPNOTSUPP
    assert guest.call(name, guest.put(header(XEN_DOMCTL_shadow_op, 0x14))) == -E.OPNOTSUPP
    assert guest.call(name, guest.put(header(XEN_DOMCTL_shadow_op, 0x15, 99))) == -E.SRCH
    assert guest.call(name, guest.put(header(XEN_DOMCTL_shadow_op, 0x15, DOMID))) == -E.PERM


@pytest.mark.parametrize(
    ("name", "errno"),
    [
        ("kexec_op", E.PERM),
        ("hypfs_op", E.PERM),
        ("mca", E.PERM),
        ("xsm_op", E.NOSYS),
        ("tmem_op", E.NOSYS),
        ("argo_op", E.NOSYS),
        ("xenpmu_op", E.OPNOTSUPP),
    ],
)
def test_refused_without_a_look_at_the_argument(guest: PvGuest, name: str, errno: E) -> None:
    for command in (0, 1, 99):
        assert guest.call(name, command, NOT_MAPPED) == -errno


def test_mca_is_the_first_of_the_architectures(guest: PvGuest) -> None:
    assert (NUMBERS["mca"], NUMBERS["paging_domctl_cont"], NUMBERS["arch_2"]) == (48, 49, 50)
    assert guest.call("arch_2") == -E.NOSYS


def test_dm_op(guest: PvGuest) -> None:
    assert guest.call("dm_op", DOMID, 3, 0) == -E.TOO_BIG
    assert guest.call("dm_op", DOMID, 1, NOT_MAPPED) == -E.FAULT
    at = guest.put(ROOM)
    for domid, errno in ((DOMID, E.PERM), (0, E.INVAL), (99, E.SRCH)):
        assert guest.call("dm_op", domid, 2, at) == -errno
        assert guest.call("dm_op", domid, 0, 0) == -errno
    assert guest.call("dm_op", SELF, 0, 0) == -E.SRCH


@pytest.mark.parametrize("command", range(19))
def test_xenoprof_op(guest: PvGuest, command: int) -> None:
    answers = {0: E.NODEV, 14: E.BUSY, 18: E.INVAL}
    assert guest.call("xenoprof_op", command, guest.put(ROOM)) == -answers.get(command, E.PERM)
    if command == 0:
        assert guest.call("xenoprof_op", command, NOT_MAPPED) == -E.FAULT


# --- hvm_op -----------------------------------------------------------------------------------


def test_the_clock_is_for_everybody(guest: PvGuest) -> None:
    before = guest.time.now_ns()
    result, op = guest.op("hvm_op", HVMOP_get_time, XenHvmGetTime())
    assert result == 0
    assert before < op.now < guest.time.now_ns()
    assert guest.call("hvm_op", HVMOP_get_time, NOT_MAPPED) == -E.FAULT


@pytest.mark.parametrize(
    ("command", "structure", "result"),
    [
        (HVMOP_get_param, XenHvmParam(domid=SELF, index=1), -E.INVAL),
        (HVMOP_set_param, XenHvmParam(domid=DOMID, index=1), -E.INVAL),
        (HVMOP_get_param, XenHvmParam(domid=9, index=1), -E.SRCH),
        (HVMOP_get_param, XenHvmParam(domid=9, index=39), -E.INVAL),
        (HVMOP_get_mem_type, XenHvmGetMemType(domid=SELF), -E.INVAL),
        (HVMOP_get_mem_type, XenHvmGetMemType(domid=0), -E.PERM),
        (HVMOP_get_mem_type, XenHvmGetMemType(domid=9), -E.SRCH),
        (HVMOP_pagetable_dying, XenHvmPagetableDying(domid=SELF), -E.INVAL),
        (HVMOP_pagetable_dying, XenHvmPagetableDying(domid=0), -E.OPNOTSUPP),
        (HVMOP_pagetable_dying, XenHvmPagetableDying(domid=9), -E.SRCH),
        (HVMOP_xentrace, XenHvmXentrace(event=0xFFF, extra_bytes=28), 0),
        (HVMOP_xentrace, XenHvmXentrace(event=0x1000), -E.INVAL),
        (HVMOP_xentrace, XenHvmXentrace(extra_bytes=29), -E.INVAL),
    ],
)
def test_hvm_op(guest: PvGuest, command: int, structure: XenStruct, result: int) -> None:
    assert guest.op("hvm_op", command, structure)[0] == result
    assert guest.call("hvm_op", command, NOT_MAPPED) == -E.FAULT


def test_hvm_op_without_a_structure(guest: PvGuest) -> None:
    at = guest.put(ROOM)
    for command in (HVMOP_flush_tlbs, HVMOP_set_evtchn_upcall_vector):
        assert guest.call("hvm_op", command, 0) == guest.call("hvm_op", command, at) == -E.INVAL
    assert guest.call("hvm_op", HVMOP_altp2m, NOT_MAPPED) == -E.OPNOTSUPP
    assert guest.call("hvm_op", HVMOP_guest_request_vm_event, 0) == 0
    assert guest.call("hvm_op", HVMOP_guest_request_vm_event, at) == -E.INVAL
    for command in (2, 12, 26, 1 << 32):
        assert guest.call("hvm_op", command, at) == -E.NOSYS


# --- physdev_op -------------------------------------------------------------------------------


@pytest.mark.parametrize("command", range(1, 34))
def test_physdev_op_reads_its_argument(guest: PvGuest, command: int) -> None:
    unknown, no_argument = {1, 2, 3, 11, 18, 22, 32, 33}, {24: E.PERM, 29: E.PERM}
    result = guest.call("physdev_op", command, NOT_MAPPED)
    if command == PHYSDEVOP_IRQ_UNMASK_NOTIFY:
        assert result == 0
    elif command in unknown:
        assert result == -E.NOSYS
    else:
        assert result == -no_argument.get(command, E.FAULT)


@pytest.mark.parametrize("command", [8, 9, 10, 15, 16, 24, 25, 26, 29, 30, 31])
def test_physdev_op_for_domain_0(guest: PvGuest, command: int) -> None:
    assert guest.call("physdev_op", command, guest.put(ROOM)) == -E.PERM


@pytest.mark.parametrize("command", [19, 27])
def test_there_is_no_pci_device(guest: PvGuest, command: int) -> None:
    assert guest.call("physdev_op", command, guest.put(ROOM)) == -E.NODEV


@pytest.mark.parametrize(
    ("command", "structure", "errno"),
    [
        (PHYSDEVOP_map_pirq, PhysdevMapPirq(domid=SELF, type=MAP_PIRQ_TYPE_GSI), E.PERM),
        (PHYSDEVOP_map_pirq, PhysdevMapPirq(domid=9), E.SRCH),
        (
            PHYSDEVOP_map_pirq,
            PhysdevMapPirq(domid=9, type=MAP_PIRQ_TYPE_MULTI_MSI, table_base=1),
            E.INVAL,
        ),
        (PHYSDEVOP_unmap_pirq, PhysdevUnmapPirq(domid=SELF), E.PERM),
        (PHYSDEVOP_unmap_pirq, PhysdevUnmapPirq(domid=9), E.SRCH),
        (PHYSDEVOP_manage_pci_add_ext, PhysdevManagePciExt(is_extfn=2), E.INVAL),
        (PHYSDEVOP_manage_pci_add_ext, PhysdevManagePciExt(is_virtfn=1), E.PERM),
        (PHYSDEVOP_setup_gsi, PhysdevSetupGsi(gsi=-1), E.INVAL),
        (PHYSDEVOP_setup_gsi, PhysdevSetupGsi(gsi=NR_GSIS), E.INVAL),
        (PHYSDEVOP_setup_gsi, PhysdevSetupGsi(gsi=NR_GSIS - 1), E.PERM),
        (PHYSDEVOP_eoi, PhysdevEoi(irq=20), E.INVAL),
        (PHYSDEVOP_eoi, PhysdevEoi(irq=0xFFFF_FFFF), E.INVAL),
        (PHYSDEVOP_irq_status_query, PhysdevIrqStatusQuery(irq=NR_PIRQS), E.INVAL),
        (PHYSDEVOP_irq_status_query, PhysdevIrqStatusQuery(irq=0xFFFF_FFFF), E.INVAL),
    ],
)
def test_physdev_op_errors(guest: PvGuest, command: int, structure: XenStruct, errno: E) -> None:
    assert guest.op("physdev_op", command, structure)[0] == -errno
    assert guest.call("physdev_op", PHYSDEVOP_free_irq_vector) == -E.NOSYS


def test_every_interrupt_needs_an_eoi(guest: PvGuest) -> None:
    op = PhysdevIrqStatusQuery(irq=NR_PIRQS - 1, flags=0xFF)
    result, answer = guest.op("physdev_op", PHYSDEVOP_irq_status_query, op)
    assert (result, answer.flags) == (0, 1)


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (MAP_PIRQ_TYPE_GSI, [*range(16, 24), *range(55, 23, -1)]),
        (MAP_PIRQ_TYPE_MSI, [*range(55, 23, -1)]),
    ],
)
def test_numbers_for_interrupts(guest: PvGuest, kind: int, numbers: list[int]) -> None:
    op = PhysdevGetFreePirq(type=kind)
    given = []
    for _ in numbers:
        result, answer = guest.op("physdev_op", PHYSDEVOP_get_free_pirq, op)
        assert result == 0
        given.append(answer.pirq)
    assert given == numbers
    assert guest.op("physdev_op", PHYSDEVOP_get_free_pirq, op)[0] == -E.NOSPC
    assert guest.op("physdev_op", PHYSDEVOP_eoi, PhysdevEoi(irq=numbers[0]))[0] == 0


def test_the_page_of_eois(guest: PvGuest) -> None:
    for mfn in (0, L1, 1 << 40):
        op = PhysdevPirqEoiGmfn(gmfn=mfn)
        assert guest.op("physdev_op", PHYSDEVOP_pirq_eoi_gmfn_v2, op)[0] == -E.INVAL
    op = PhysdevPirqEoiGmfn(gmfn=XEN_PAGES + PFN)
    assert guest.op("physdev_op", PHYSDEVOP_pirq_eoi_gmfn_v1, op)[0] == 0
    assert guest.domain.frames.type(XEN_PAGES + PFN) is FrameType.WRITABLE
    assert guest.op("physdev_op", PHYSDEVOP_pirq_eoi_gmfn_v2, op)[0] == -E.BUSY


def test_the_older_form_of_physdev_op(guest: PvGuest) -> None:
    at = guest.put(PhysdevOp(cmd=PHYSDEVOP_set_iopl, u=(2).to_bytes(16, "little")))
    assert guest.call("physdev_op_compat", at) == 0
    assert guest.vcpu.pv.iopl == 2
    assert guest.call("physdev_op_compat", guest.put(PhysdevOp(cmd=99))) == -E.NOSYS
    assert guest.call("physdev_op_compat", NOT_MAPPED) == -E.FAULT
