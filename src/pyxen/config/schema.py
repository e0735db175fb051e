"""Every setting of an xl.cfg file, once: its kind, where it goes, what it means, and whether
this build of pyxen honours it.

The order is that in which settings are read and complained about.
Source: xl.cfg(5); the set of settings is that of xl 4.17.
"""

from enum import Enum
from typing import NamedTuple

MIB = 1024
"""KiB in a MiB: the scale of settings given in MiB and kept in KiB."""


class Kind(Enum):
    """How a setting is read."""

    STRING = "string"
    NUMBER = "number"
    BOOLEAN = "0 or 1"
    STRINGS = "list of strings"
    CHOICE = "one of a few words"
    STEP = "read by a step of load.py, together with others"
    IGNORED = "known, and without effect"


class Guests(Enum):
    """For which guest types a setting means something."""

    ALL = ("pv", "pvh", "hvm")
    PV = ("pv",)
    PVH = ("pvh",)
    HVM = ("hvm",)
    HARDWARE = ("pvh", "hvm")
    ARM = ()


class Key(NamedTuple):
    """One setting.

    `into` is a path such as "b_info.kernel"; "hvm.", "pv." and "pvh." stand for what only guests
    of that type have, and the setting is not read for others. `unsupported` is the reason why
    pyxen does not honour it yet, empty if it does. `exit_code` is xl's when the value is refused.
    """

    name: str
    kind: Kind
    into: str
    doc: str
    guests: Guests = Guests.ALL
    unsupported: str = ""
    scale: int = 1
    low: int = 0
    high: int = (1 << 32) - 1
    choices: tuple[str, ...] = ()
    exit_code: int = 1


ACTIONS = {
    "destroy": "destroy",
    "restart": "restart",
    "rename-restart": "restart_rename",
    "preserve": "preserve",
    "coredump-destroy": "coredump_destroy",
    "coredump-restart": "coredump_restart",
    "soft-reset": "soft_reset",
}
"""The actions of on_poweroff and its siblings, with libxl's names for them."""

TSC_MODES = ("default", "always_emulate", "native", "native_paravirt")
TIMER_MODES = (
    "delay_for_missed_ticks",
    "no_delay_for_missed_ticks",
    "no_missed_ticks_pending",
    "one_missed_tick_pending",
)
ALTP2M_MODES = ("disabled", "mixed", "external", "limited")
BIOSES = ("rombios", "seabios", "ovmf")
VIRIDIAN = (
    *("base", "freq", "time_ref_count", "reference_tsc", "hcall_remote_tlb_flush", "apic_assist"),
    *("crash_ctl", "synic", "stimer", "hcall_ipi", "ex_processor_masks", "no_vp_limit"),
    "cpu_hotplug",
)
PASSTHROUGH = ("default", "disabled", "enabled", "sync_pt", "share_pt")

# Why something is not honoured yet.
_VIF = "there is no network back end yet"
_SCREEN = "there is no frame buffer back end yet"
_DEVICE = "there is no back end for this device yet"
_HOST_DEVICE = "devices of the host cannot be passed to a guest"
_SCHED = "vCPUs are scheduled by the host's kernel"
_SECURITY = "there is no XSM policy"
_QEMU = "there is no device model"
_CPUID = "the CPU a guest sees cannot be changed yet"
_TIME = "the guest's clock is the host's"
_NUMA = "guests have one NUMA node"

_S, _N, _B, _L, _C = Kind.STRING, Kind.NUMBER, Kind.BOOLEAN, Kind.STRINGS, Kind.CHOICE
_STEP, _NONE = Kind.STEP, Kind.IGNORED
_ALL, _PV, _PVH, _HVM, _HW, _ARM = Guests

LONG_MIN, U16, U32, MAX_MIB = -(1 << 63), (1 << 16) - 1, (1 << 32) - 1, 1 << 43
INT_MAX = (1 << 31) - 1

_GENERAL = (
    Key("init_seclabel", _STEP, "", "security label while the domain is built", _ALL, _SECURITY),
    Key("seclabel", _STEP, "", "security label of the domain", _ALL, _SECURITY),
    Key("type", _STEP, "c_info.type", "guest type: pv, pvh or hvm"),
    Key("builder", _STEP, "c_info.type", "old form of type: generic or hvm"),
    Key("hap", _B, "c_info.hap", "use hardware assisted paging", _HW),
    Key("name", _STEP, "c_info.name", "name of the domain, unique on the host"),
    Key("uuid", _STEP, "c_info.uuid", "UUID of the domain; a random one by default"),
    Key("oos", _B, "c_info.oos", "out-of-sync shadow page tables", _HW),
    Key("pool", _S, "c_info.pool_name", "CPU pool to run in", _ALL, _SCHED),
    Key("cpu_weight", _N, "sched.weight", "share of the CPUs, 256 by default", _ALL, _SCHED),
    Key("cap", _N, "sched.cap", "most CPU time, in percent of one CPU", _ALL, _SCHED),
    Key("period", _N, "sched.period", "period of the RTDS scheduler, us", _ALL, _SCHED),
    Key("slice", _N, "sched.slice", "of a scheduler that is gone", _ALL, _SCHED),
    Key("latency", _N, "sched.latency", "of a scheduler that is gone", _ALL, _SCHED),
    Key("extratime", _N, "sched.extratime", "may use idle time (RTDS)", _ALL, _SCHED),
    Key("memory", _N, "b_info.target_memkb", "MiB at the start", scale=MIB, high=MAX_MIB),
    Key("maxmem", _N, "b_info.max_memkb", "MiB at most", scale=MIB, high=MAX_MIB),
    Key("vcpus", _STEP, "b_info.avail_vcpus", "vCPUs online at the start"),
    Key("maxvcpus", _STEP, "b_info.max_vcpus", "vCPUs at most"),
    Key("vnuma", _STEP, "b_info.vnuma_nodes", "virtual NUMA nodes", _HW, _NUMA),
    Key("cpus", _STEP, "b_info.vcpu_hard_affinity", "host CPUs to run on", _ALL, _SCHED),
    Key("cpus_soft", _STEP, "b_info.vcpu_soft_affinity", "preferred CPUs", _ALL, _SCHED),
)

_DOMAIN = (
    Key("max_grant_frames", _N, "b_info.max_grant_frames", "grant table pages at most, 64"),
    Key(
        "max_maptrack_frames",
        _N,
        "b_info.max_maptrack_frames",
        "pages that track grant mappings at most, 1024",
    ),
    Key("max_grant_version", _N, "b_info.max_grant_version", "highest grant table version, 2"),
    Key("on_poweroff", _STEP, "on_poweroff", "what to do when the guest powers off"),
    Key("on_reboot", _STEP, "on_reboot", "what to do when the guest reboots"),
    Key("on_watchdog", _STEP, "on_watchdog", "what to do when the guest's watchdog fires"),
    Key("on_crash", _STEP, "on_crash", "what to do when the guest crashes"),
    Key("on_soft_reset", _STEP, "on_soft_reset", "what to do on a soft reset"),
    Key("e820_host", _B, "pv.e820_host", "show the host's memory map", _PV, _HOST_DEVICE),
    Key("pci_msitranslate", _STEP, "", "default for pci", _ALL, _HOST_DEVICE),
    Key("pci_power_mgmt", _STEP, "", "default for pci", _ALL, _HOST_DEVICE),
    Key("pci_permissive", _STEP, "", "default for pci", _ALL, _HOST_DEVICE),
    Key("pci_seize", _STEP, "", "default for pci", _ALL, _HOST_DEVICE),
    Key("rdm", _STEP, "hvm.rdm", "memory reserved by host devices", _HVM, _HOST_DEVICE),
    Key("pci", _STEP, "pcidevs", "PCI devices of the host", _ALL, _HOST_DEVICE),
    Key("dtdev", _STEP, "dtdevs", "device tree nodes of the host", _ALL, _HOST_DEVICE),
    Key(
        "passthrough",
        _C,
        "c_info.passthrough",
        "whether devices may be passed",
        _ALL,
        choices=PASSTHROUGH,
    ),
    Key(
        "shadow_memory",
        _N,
        "b_info.shadow_memkb",
        "MiB for shadow page tables",
        _HW,
        scale=MIB,
        high=MAX_MIB,
    ),
    Key("nomigrate", _B, "b_info.disable_migrate", "never migrate this domain"),
    Key("tsc_mode", _STEP, "b_info.tsc_mode", "how the time stamp counter behaves", _ALL, _TIME),
    Key("rtc_timeoffset", _N, "b_info.rtc_timeoffset", "clock offset, s", _ALL, _TIME, low=-U32),
    Key("vncviewer", _NONE, "", "xl takes -V instead"),
    Key("localtime", _B, "b_info.localtime", "clock at local time, not UTC", _ALL, _TIME),
    Key("videoram", _N, "b_info.video_memkb", "MiB of video memory", _HVM, scale=MIB, high=MAX_MIB),
    Key("max_event_channels", _N, "b_info.event_channels", "event channels at most"),
    Key("kernel", _S, "b_info.kernel", "kernel image on the host"),
    Key("ramdisk", _S, "b_info.ramdisk", "initial ramdisk on the host"),
    Key("device_tree", _S, "b_info.device_tree", "partial device tree", _ARM),
    Key("cmdline", _STEP, "b_info.cmdline", "kernel command line"),
    Key("root", _STEP, "b_info.cmdline", "root= of the kernel command line"),
    Key("extra", _STEP, "b_info.cmdline", "more of the kernel command line"),
    Key(
        "driver_domain",
        _B,
        "c_info.driver_domain",
        "the guest has back ends",
        _ALL,
        "back ends run on the host only",
    ),
    Key("acpi", _B, "b_info.acpi", "ACPI tables", _HW),
    Key("bootloader", _S, "b_info.bootloader", "program that finds the kernel"),
    Key("bootloader_args", _STEP, "b_info.bootloader_args", "its arguments"),
    Key("timer_mode", _STEP, "b_info.timer_mode", "how missed ticks are made up", _HW),
    Key("nestedhvm", _B, "b_info.nested_hvm", "virtualization inside the guest", _HW),
    Key("vuart", _C, "b_info.arch_arm.vuart", "emulated UART", _ARM, choices=("sbsa_uart",)),
)

_BY_TYPE = (
    Key("pvshim", _B, "pvh.pvshim", "run a PV kernel inside PVH", _PVH),
    Key("pvshim_path", _S, "pvh.pvshim_path", "the shim's image", _PVH),
    Key("pvshim_cmdline", _S, "pvh.pvshim_cmdline", "the shim's command line", _PVH),
    Key("pvshim_extra", _S, "pvh.pvshim_extra", "more of the shim's command line", _PVH),
    Key("firmware_override", _S, "hvm.firmware", "image instead of hvmloader", _HVM),
    Key("bios_path_override", _S, "hvm.system_firmware", "BIOS image", _HVM),
    Key("bios", _C, "hvm.bios", "BIOS kind", _HVM, choices=BIOSES),
    Key("pae", _B, "hvm.pae", "physical address extension", _HVM),
    Key("acpi_s3", _B, "hvm.acpi_s3", "suspend to RAM", _HVM),
    Key("acpi_s4", _B, "hvm.acpi_s4", "suspend to disk", _HVM),
    Key("acpi_laptop_slate", _B, "hvm.acpi_laptop_slate", "laptop or slate switch", _HVM),
    Key("nx", _B, "hvm.nx", "no-execute pages", _HVM),
    Key("hpet", _B, "hvm.hpet", "HPET timer", _HVM),
    Key("vpt_align", _B, "hvm.vpt_align", "align timers to save wake-ups", _HVM),
    Key("apic", _B, "b_info.apic", "interrupt controllers", _HVM),
    Key("viridian", _STEP, "hvm.viridian", "Hyper-V interfaces", _HVM),
    Key("mmio_hole", _STEP, "hvm.mmio_hole_memkb", "MiB for devices below 4 GiB", _HVM),
    Key("altp2mhvm", _B, "hvm.altp2m", "old form of altp2m", _HVM),
    Key("smbios_firmware", _S, "hvm.smbios_firmware", "file with SMBIOS tables", _HVM),
    Key("acpi_firmware", _S, "hvm.acpi_firmware", "file with ACPI tables", _HVM),
    Key("ms_vm_genid", _STEP, "hvm.ms_vm_genid", "VM generation id", _HVM),
    Key(
        "rdm_mem_boundary",
        _N,
        "hvm.rdm_mem_boundary_memkb",
        "MiB boundary for rdm",
        _HVM,
        scale=MIB,
        high=MAX_MIB,
    ),
    Key("mca_caps", _STEP, "hvm.mca_caps", "machine check features", _HVM),
    Key(
        "firmware",
        _STEP,
        "",
        "BIOS or, for PV, pvgrub32 or pvgrub64",
        _ALL,
        "pvgrub is not packaged with pyxen",
    ),
    Key("altp2m", _STEP, "b_info.altp2m", "alternate p2m", _HW),
    Key(
        "vmtrace_buf_kb",
        _N,
        "b_info.vmtrace_buf_kb",
        "KiB of trace buffer",
        _ALL,
        "there is no processor trace",
        high=INT_MAX,
    ),
    Key("ioports", _STEP, "b_info.ioports", "I/O ports of the host", _ALL, _HOST_DEVICE),
    Key("irqs", _STEP, "b_info.irqs", "interrupts of the host", _ALL, _HOST_DEVICE),
    Key("iomem", _STEP, "b_info.iomem", "memory of host devices", _ALL, _HOST_DEVICE),
)

_DEVICES = (
    Key("disk", _STEP, "disks", "block devices", _ALL),
    Key("p9", _STEP, "p9s", "shared directories", _ALL, _DEVICE),
    Key("vtpm", _STEP, "vtpms", "virtual TPMs", _ALL, _DEVICE),
    Key("vdispl", _STEP, "vdispls", "displays", _ALL, _DEVICE),
    Key("pvcalls", _STEP, "pvcallsifs", "sockets of another domain", _ALL, _DEVICE),
    Key("vsnd", _STEP, "vsnds", "sound cards", _ALL, _DEVICE),
    Key("channel", _STEP, "channels", "byte streams to the host", _ALL, _DEVICE),
    Key("vif", _STEP, "nics", "network interfaces", _ALL, _VIF),
    Key("vif2", _NONE, "", "an interface kind that is gone"),
    Key("vfb", _STEP, "vfbs", "frame buffers", _ALL, _SCREEN),
    Key("usbctrl", _STEP, "usbctrls", "USB controllers", _ALL, _DEVICE),
    Key("usbdev", _STEP, "usbdevs", "USB devices of the host", _ALL, _HOST_DEVICE),
    Key("cpuid", _STEP, "b_info.cpuid", "CPU features", _ALL, _CPUID),
    Key("device_model", _NONE, "", "old form of device_model_override"),
    Key(
        "device_model_override",
        _S,
        "b_info.device_model",
        "program that is the device model",
        _ALL,
        _QEMU,
    ),
    Key("device_model_version", _STEP, "b_info.device_model_version", "its kind", _HVM),
    Key(
        "device_model_stubdomain_override",
        _B,
        "b_info.device_model_stubdomain",
        "run it in a domain of its own",
        _HVM,
    ),
    Key(
        "device_model_stubdomain_seclabel",
        _S,
        "b_info.device_model_ssid_label",
        "that domain's security label",
        _HVM,
    ),
    Key("device_model_user", _S, "b_info.device_model_user", "user it runs as", _HVM),
    Key("stubdomain_kernel", _S, "b_info.stubdomain_kernel", "its domain's kernel", _HVM),
    Key("stubdomain_cmdline", _S, "b_info.stubdomain_cmdline", "and command line", _HVM),
    Key("stubdomain_ramdisk", _S, "b_info.stubdomain_ramdisk", "and ramdisk", _HVM),
    Key(
        "stubdomain_memory", _N, "b_info.stubdomain_memkb", "and MiB", _HVM, scale=MIB, high=MAX_MIB
    ),
    Key("device_model_args", _L, "b_info.extra", "arguments for it", _ALL, _QEMU, exit_code=3),
    Key("device_model_args_pv", _L, "b_info.extra_pv", "for PV guests", _PV, _QEMU, exit_code=3),
    Key("device_model_args_hvm", _L, "b_info.extra_hvm", "for HVM guests", _HVM, exit_code=3),
    Key("dm_restrict", _B, "b_info.dm_restrict", "confine it", _HVM),
    Key("vkb", _STEP, "vkbs", "keyboards", _ALL, _SCREEN),
)

_SCREENS = (
    Key("vnc", _STEP, "", "show the screen through VNC", _ALL, _SCREEN),
    Key("vnclisten", _STEP, "", "address of the VNC server"),
    Key("vncpasswd", _STEP, "", "password for VNC"),
    Key("vncdisplay", _STEP, "", "VNC display number"),
    Key("vncunused", _STEP, "", "take any free VNC display"),
    Key("sdl", _STEP, "", "show the screen in a window", _ALL, _SCREEN),
    Key("opengl", _STEP, "", "draw the window with OpenGL"),
    Key("display", _STEP, "", "X display of the window"),
    Key("xauthority", _STEP, "", "X authority of the window"),
    Key("keymap", _STEP, "", "keyboard layout"),
    Key("vga", _STEP, "hvm.vga.kind", "graphics card", _HVM),
    Key("stdvga", _STEP, "hvm.vga.kind", "old form of vga", _HVM),
    Key("hdtype", _C, "hvm.hdtype", "disk controller", _HVM, choices=("ide", "ahci")),
    Key("spice", _B, "hvm.spice.enable", "SPICE server", _HVM),
    Key("spiceport", _N, "hvm.spice.port", "its port", _HVM, high=INT_MAX),
    Key("spicetls_port", _N, "hvm.spice.tls_port", "its TLS port", _HVM, high=INT_MAX),
    Key("spicehost", _S, "hvm.spice.host", "its address", _HVM),
    Key("spicedisable_ticketing", _B, "hvm.spice.disable_ticketing", "no password", _HVM),
    Key("spicepasswd", _S, "hvm.spice.passwd", "its password", _HVM),
    Key("spiceagent_mouse", _B, "hvm.spice.agent_mouse", "mouse through the agent", _HVM),
    Key("spicevdagent", _B, "hvm.spice.vdagent", "SPICE agent", _HVM),
    Key("spice_clipboard_sharing", _B, "hvm.spice.clipboard_sharing", "shared clipboard", _HVM),
    Key("spiceusbredirection", _N, "hvm.spice.usbredirection", "USB channels", _HVM, high=INT_MAX),
    Key("spice_image_compression", _S, "hvm.spice.image_compression", "of images", _HVM),
    Key("spice_streaming_video", _S, "hvm.spice.streaming_video", "of video", _HVM),
    Key("nographic", _B, "hvm.nographic", "no screen", _HVM),
    Key("gfx_passthru", _STEP, "hvm.gfx_passthru", "pass the graphics card", _HVM),
    Key("serial", _STEP, "hvm.serial", "serial ports", _HVM),
    Key("boot", _S, "hvm.boot", "boot order", _HVM),
    Key("usb", _B, "hvm.usb", "USB controller", _HVM),
    Key("usbversion", _N, "hvm.usbversion", "USB version", _HVM, high=INT_MAX),
    Key("usbdevice", _STEP, "hvm.usbdevice", "USB devices", _HVM),
    Key("vkb_device", _B, "hvm.vkb_device", "paravirtual keyboard", _HVM),
    Key("soundhw", _S, "hvm.soundhw", "sound card", _HVM),
    Key("xen_platform_pci", _B, "hvm.xen_platform_pci", "Xen platform device", _HVM),
    Key(
        "vendor_device",
        _C,
        "hvm.vendor_device",
        "vendor's PV driver device",
        _HVM,
        choices=("none", "xenserver"),
        exit_code=3,
    ),
    Key(
        "gic_version",
        _C,
        "b_info.arch_arm.gic_version",
        "interrupt controller",
        _ARM,
        choices=("default", "v2", "v3"),
        exit_code=3,
    ),
    Key("tee", _C, "b_info.tee", "trusted execution", _ARM, choices=("none", "optee"), exit_code=3),
    Key(
        "xend_suspend_evtchn_compat",
        _B,
        "c_info.xend_suspend_evtchn_compat",
        "suspend through xenstore only",
    ),
    Key(
        "msr_relaxed",
        _B,
        "b_info.arch_x86.msr_relaxed",
        "unknown MSRs read as 0",
        _ALL,
        "unknown MSRs fault",
    ),
    Key("vpmu", _B, "b_info.vpmu", "performance counters", _ALL, "there are none to show"),
)

KEYS = {key.name: key for key in (*_GENERAL, *_DOMAIN, *_BY_TYPE, *_DEVICES, *_SCREENS)}

LATER_KEYS = (
    *("virtio", "llc_colors", "bootloader_restrict", "bootloader_user", "smbios", "hvm_pirq"),
    *("altp2m_count", "xen_platform_pci_bar_uc", "trap_unmapped_accesses", "arm_sci", "sve"),
    *("nr_spis", "xenstore_feature_mask", "xenstore_quota"),
)
"""Settings of a later Xen than 4.17; xl 4.17 ignores them, and so do we."""

OLD_KEYS = ("suspend_cancel", "blkdev_start", "xen_extended_power_mgmt", "nfs_server", "nfs_root")
"""Settings of older tool stacks that stand in many files and that xl ignores."""
