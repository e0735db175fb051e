"""What CPUID tells a PV guest.

Source: public/arch-x86/cpuid.h for the leaves at 0x40000000; Intel SDM volume 2, CPUID, for the
others. The processor shown is what the engine can execute: no XSAVE, FSGSBASE, PSE, MTRR or AVX.
"""

from __future__ import annotations

from pyxen.abi.arch_x86_cpuid import (
    XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD,
    XEN_CPUID_FIRST_LEAF,
    XEN_CPUID_MAX_NUM_LEAVES,
    XEN_CPUID_SIGNATURE_EBX,
    XEN_CPUID_SIGNATURE_ECX,
    XEN_CPUID_SIGNATURE_EDX,
)
from pyxen.cpu.base import CpuidLeaf
from pyxen.hypervisor.time import SystemTime
from pyxen.hypervisor.version import XEN_MAJOR, XEN_MINOR

BRAND = b"pyxen virtual CPU (Unicorn)"
XEN_LEAVES = XEN_CPUID_FIRST_LEAF
_LAST_XEN_LEAF = XEN_LEAVES + XEN_CPUID_MAX_NUM_LEAVES
_HYPERVISOR_PRESENT = 1 << 31

# Family 6, model 28, stepping 10: an in-order processor, which guests know to be free of the faults
# of speculation. An emulator is that, too, and a guest that believes it has no mitigations to pay.
_SIGNATURE = 0x0001_06CA

_LEAF1_ECX = (
    _HYPERVISOR_PRESENT | 1 << 23 | 1 << 20 | 1 << 19 | 1 << 13 | 1 << 9 | 1 << 0
)  # POPCNT, SSE4.2, SSE4.1, CMPXCHG16B, SSSE3, SSE3
_LEAF1_EDX = (
    1 << 0 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 8 | 1 << 13 | 1 << 15
    | 1 << 16 | 1 << 19 | 1 << 23 | 1 << 24 | 1 << 25 | 1 << 26
)  # fmt: skip  # FPU DE TSC MSR PAE CX8 SEP PGE CMOV PAT CLFLUSH MMX FXSR SSE SSE2
_EXT1_EDX = 1 << 11 | 1 << 20 | 1 << 27 | 1 << 29  # SYSCALL NX RDTSCP LM
_EXT1_ECX = 1 << 0  # LAHF in 64-bit mode
_INVARIANT_TSC = 1 << 8
_MSRS_AT = XEN_LEAVES
_TSC_IS_SAFE, _RDTSCP, _TSC_MODE_DEFAULT = 1 << 1, 1 << 2, 0
_ADDRESS_BITS = 40


class XenCpuid:
    """The CPUID policy of a PV domain; call it with (leaf, subleaf)."""

    def __init__(self) -> None:
        self.time: SystemTime | None = None
        """Set once the TSC is calibrated; the time leaf is empty before."""
        brand = BRAND.ljust(48, b"\0")
        self._brand = [
            CpuidLeaf(
                *(int.from_bytes(brand[i + 4 * k : i + 4 * k + 4], "little") for k in range(4))
            )
            for i in (0, 16, 32)
        ]

    def __call__(self, leaf: int, subleaf: int) -> CpuidLeaf:
        """The registers for a leaf; unknown leaves read as zero."""
        if XEN_LEAVES <= leaf <= _LAST_XEN_LEAF:
            return self._xen_leaf(leaf - XEN_LEAVES, subleaf)
        match leaf:
            case 0:
                return CpuidLeaf(0xD, *_vendor(b"GenuineIntel"))
            case 1:
                return CpuidLeaf(_SIGNATURE, 0x00000800, _LEAF1_ECX, _LEAF1_EDX)
            case 7:
                # No ERMS: an emulator's string instructions go byte by byte.
                return CpuidLeaf()
            case 0x8000_0000:
                return CpuidLeaf(0x8000_0008)
            case 0x8000_0001:
                return CpuidLeaf(0, 0, _EXT1_ECX, _EXT1_EDX)
            case 0x8000_0002 | 0x8000_0003 | 0x8000_0004:
                return self._brand[leaf - 0x8000_0002]
            case 0x8000_0007:
                return CpuidLeaf(edx=_INVARIANT_TSC)
            case 0x8000_0008:
                return CpuidLeaf(0x3000 | _ADDRESS_BITS)
        return CpuidLeaf()

    def _xen_leaf(self, index: int, subleaf: int) -> CpuidLeaf:
        match index:
            case 0:
                return CpuidLeaf(
                    _LAST_XEN_LEAF,
                    XEN_CPUID_SIGNATURE_EBX,
                    XEN_CPUID_SIGNATURE_ECX,
                    XEN_CPUID_SIGNATURE_EDX,
                )
            case 1:
                return CpuidLeaf(XEN_MAJOR << 16 | XEN_MINOR)
            case 2:
                return CpuidLeaf(1, _MSRS_AT, XEN_CPUID_FEAT1_MMU_PT_UPDATE_PRESERVE_AD)
            case 3:
                return self._time_leaf(subleaf)
            case 5 if subleaf == 0:
                return CpuidLeaf(ebx=_ADDRESS_BITS)
        return CpuidLeaf()  # among them 4, which is for HVM

    def _time_leaf(self, subleaf: int) -> CpuidLeaf:
        if self.time is None:
            return CpuidLeaf()
        record, khz = self.time.record, int(self.time.tsc_hz / 1000)
        if subleaf == 0:
            return CpuidLeaf(_TSC_IS_SAFE | _RDTSCP, _TSC_MODE_DEFAULT, khz, 1)
        if subleaf == 1:
            offset = -record.tsc_timestamp & 0xFFFF_FFFF_FFFF_FFFF
            return CpuidLeaf(
                offset & 0xFFFFFFFF,
                offset >> 32,
                record.tsc_to_system_mul,
                record.tsc_shift & 0xFFFFFFFF,
            )
        return CpuidLeaf(khz) if subleaf == 2 else CpuidLeaf()


def _vendor(name: bytes) -> tuple[int, int, int]:
    ebx, edx, ecx = (int.from_bytes(name[i : i + 4], "little") for i in (0, 4, 8))
    return ebx, ecx, edx
