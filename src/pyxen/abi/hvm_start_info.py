"""What a PVH kernel finds at EBX.

Source: public/arch-x86/hvm/start_info.h.
"""

from pyxen.abi._struct import XenStruct, u32, u64, xen_struct

_HEADERS = ("arch-x86/hvm/start_info.h",)
_PUBLIC = "arch-x86/hvm/start_info.h"

# hvm_start_info.magic
XEN_HVM_START_MAGIC_VALUE = 0x336EC578

# hvm_memmap_table_entry.type
XEN_HVM_MEMMAP_TYPE_RAM = 1
XEN_HVM_MEMMAP_TYPE_RESERVED = 2
XEN_HVM_MEMMAP_TYPE_ACPI = 3
XEN_HVM_MEMMAP_TYPE_NVS = 4
XEN_HVM_MEMMAP_TYPE_UNUSABLE = 5
XEN_HVM_MEMMAP_TYPE_DISABLED = 6
XEN_HVM_MEMMAP_TYPE_PMEM = 7


@xen_struct("struct hvm_start_info", header=_PUBLIC, size=56)
class HvmStartInfo(XenStruct):
    """The start of everything; addresses are physical. The memory map came with version 1."""

    magic: u32 = 0
    version: u32 = 0
    flags: u32 = 0
    nr_modules: u32 = 0
    modlist_paddr: u64 = 0
    cmdline_paddr: u64 = 0
    rsdp_paddr: u64 = 0
    memmap_paddr: u64 = 0
    memmap_entries: u32 = 0
    reserved: u32 = 0


@xen_struct("struct hvm_modlist_entry", header=_PUBLIC, size=32)
class HvmModlistEntry(XenStruct):
    """One module; the first is the ramdisk."""

    paddr: u64 = 0
    size: u64 = 0
    cmdline_paddr: u64 = 0
    reserved: u64 = 0


@xen_struct("struct hvm_memmap_table_entry", header=_PUBLIC, size=24)
class HvmMemmapTableEntry(XenStruct):
    """One range of the memory map."""

    addr: u64 = 0
    size: u64 = 0
    type: u32 = 0
    reserved: u32 = 0
