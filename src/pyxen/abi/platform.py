"""Commands of HYPERVISOR_platform_op. All but the symbol look-ups are for Dom0.

Source: public/platform.h.
"""

from pyxen.abi._struct import XenStruct, u32, u64, xen_struct

_HEADERS = ("platform.h",)
_PUBLIC = "platform.h"

XENPF_INTERFACE_VERSION = 0x3000001
XENPF_ACPI_SLEEP_EXTENDED = 0x1

# xen_platform_op.cmd
XENPF_settime32 = 17
XENPF_add_memtype = 31
XENPF_del_memtype = 32
XENPF_read_memtype = 33
XENPF_microcode_update = 35
XENPF_platform_quirk = 39
XENPF_get_cpu_version = 48
XENPF_efi_runtime_call = 49
XENPF_firmware_info = 50
XENPF_enter_acpi_sleep = 51
XENPF_change_freq = 52
XENPF_getidletime = 53
XENPF_set_processor_pminfo = 54
XENPF_get_cpuinfo = 55
XENPF_cpu_online = 56
XENPF_cpu_offline = 57
XENPF_cpu_hotadd = 58
XENPF_mem_hotadd = 59
XENPF_core_parking = 60
XENPF_resource_op = 61
XENPF_settime64 = 62
XENPF_settime = XENPF_settime64
XENPF_get_symbol = 63


@xen_struct("xenpf_settime64_t", header=_PUBLIC, size=24)
class XenpfSettime64(XenStruct):
    """Set the wall clock: seconds and ns since the epoch, at this system time (ns)."""

    secs: u64 = 0
    nsecs: u32 = 0
    mbz: u32 = 0
    system_time: u64 = 0
