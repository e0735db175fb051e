"""What a domain shall be: the typed form of an xl.cfg file.

Source: tools/libs/light/libxl_types.idl (names, order and defaults), xl.cfg(5) (meaning).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from pyxen.config.cpuid import CpuidPolicy
from pyxen.config.devices import (
    P9,
    Channel,
    Disk,
    Dtdev,
    IomemRange,
    IoportRange,
    Nic,
    Pci,
    Pvcallsif,
    Sdl,
    Usbctrl,
    Usbdev,
    Vdispl,
    Vfb,
    Vkb,
    Vnc,
    VnumaNode,
    Vsnd,
    Vtpm,
)
from pyxen.config.parser import RawConfig
from pyxen.config.record import Bitmap, Defbool, Record

DEFAULT_MEMORY_KIB = 32 << 10
"""What libxl gives a domain whose configuration names no memory."""


@dataclass
class CreateInfo(Record):
    """libxl_domain_create_info: what is fixed when the domain is made."""

    type: str = "invalid"
    hap: Defbool = None
    oos: Defbool = None
    ssid_label: str | None = None
    name: str | None = None
    uuid: str | None = None
    pool_name: str | None = None
    run_hotplug_scripts: Defbool = True
    driver_domain: Defbool = None
    passthrough: str = "default"
    xend_suspend_evtchn_compat: Defbool = None


@dataclass
class SchedParams(Record):
    """libxl_domain_sched_params: None leaves the scheduler's own default."""

    weight: int | None = None
    cap: int | None = None
    period: int | None = None
    extratime: int | None = None
    slice: int | None = None
    latency: int | None = None


@dataclass
class VgaInfo(Record):
    """The emulated graphics card of an HVM guest."""

    kind: str = "unknown"


@dataclass
class Spice(Record):
    """A SPICE server of an HVM guest."""

    enable: Defbool = None
    port: int = 0
    tls_port: int = 0
    host: str | None = None
    disable_ticketing: Defbool = None
    passwd: str | None = None
    agent_mouse: Defbool = None
    vdagent: Defbool = None
    clipboard_sharing: Defbool = None
    usbredirection: int = 0
    image_compression: str | None = None
    streaming_video: str | None = None


@dataclass
class RdmReserve(Record):
    """How memory reserved by host devices is kept out of the guest's way."""

    strategy: str = "ignore"
    policy: str = "invalid"


@dataclass
class HvmInfo(Record):
    """What only an HVM guest has."""

    union_key: ClassVar[str] = "type.hvm"
    firmware: str | None = None
    bios: str = "unknown"
    pae: Defbool = None
    acpi_s3: Defbool = None
    acpi_s4: Defbool = None
    acpi_laptop_slate: Defbool = None
    nx: Defbool = None
    viridian: Defbool = None
    viridian_enable: Bitmap = field(default_factory=list)
    viridian_disable: Bitmap = field(default_factory=list)
    hpet: Defbool = None
    vpt_align: Defbool = None
    mmio_hole_memkb: int | None = None
    altp2m: Defbool = None
    system_firmware: str | None = None
    smbios_firmware: str | None = None
    acpi_firmware: str | None = None
    hdtype: str = "ide"
    nographic: Defbool = None
    vga: VgaInfo = field(default_factory=VgaInfo)
    vnc: Vnc = field(default_factory=Vnc)
    keymap: str | None = None
    sdl: Sdl = field(default_factory=Sdl)
    spice: Spice = field(default_factory=Spice)
    gfx_passthru: Defbool = None
    gfx_passthru_kind: str = "default"
    serial: str | None = None
    boot: str | None = None
    usb: Defbool = None
    usbversion: int = 0
    usbdevice: str | None = None
    vkb_device: Defbool = None
    soundhw: str | None = None
    xen_platform_pci: Defbool = None
    usbdevice_list: list[str] = field(default_factory=list)
    vendor_device: str = "none"
    ms_vm_genid: list[int] = field(default_factory=list)
    serial_list: list[str] = field(default_factory=list)
    rdm: RdmReserve = field(default_factory=RdmReserve)
    rdm_mem_boundary_memkb: int | None = None
    mca_caps: int = 0


@dataclass
class PvInfo(Record):
    """What only a PV guest has."""

    union_key: ClassVar[str] = "type.pv"
    e820_host: Defbool = None


@dataclass
class PvhInfo(Record):
    """What only a PVH guest has."""

    union_key: ClassVar[str] = "type.pvh"
    pvshim: Defbool = None
    pvshim_path: str | None = None
    pvshim_cmdline: str | None = None
    pvshim_extra: str | None = None


@dataclass
class ArmInfo(Record):
    """What only an Arm guest has."""

    gic_version: str = "default"
    vuart: str = "unknown"


@dataclass
class X86Info(Record):
    """What only an x86 guest has."""

    msr_relaxed: Defbool = None


@dataclass
class BuildInfo(Record):
    """libxl_domain_build_info: what the domain is built from. Memory sizes are in KiB."""

    max_vcpus: int = 0
    avail_vcpus: Bitmap = field(default_factory=list)
    vcpu_hard_affinity: list[Bitmap] = field(default_factory=list)
    vcpu_soft_affinity: list[Bitmap] = field(default_factory=list)
    numa_placement: Defbool = None
    tsc_mode: str = "default"
    max_memkb: int | None = None
    target_memkb: int | None = None
    video_memkb: int | None = None
    shadow_memkb: int | None = None
    rtc_timeoffset: int = 0
    exec_ssid_label: str | None = None
    localtime: Defbool = None
    disable_migrate: Defbool = None
    cpuid: CpuidPolicy | None = None
    vnuma_nodes: list[VnumaNode] = field(default_factory=list)
    max_grant_frames: int | None = None
    max_maptrack_frames: int | None = None
    max_grant_version: int | None = None
    device_model_version: str = "unknown"
    device_model_stubdomain: Defbool = None
    stubdomain_memkb: int | None = None
    stubdomain_kernel: str | None = None
    stubdomain_cmdline: str | None = None
    stubdomain_ramdisk: str | None = None
    device_model: str | None = None
    device_model_ssid_label: str | None = None
    device_model_user: str | None = None
    extra: list[str] = field(default_factory=list)
    extra_pv: list[str] = field(default_factory=list)
    extra_hvm: list[str] = field(default_factory=list)
    sched_params: SchedParams = field(default_factory=SchedParams)
    ioports: list[IoportRange] = field(default_factory=list)
    irqs: list[int] = field(default_factory=list)
    iomem: list[IomemRange] = field(default_factory=list)
    claim_mode: Defbool = True
    event_channels: int = 0
    kernel: str | None = None
    cmdline: str | None = None
    ramdisk: str | None = None
    device_tree: str | None = None
    acpi: Defbool = None
    bootloader: str | None = None
    bootloader_args: list[str] = field(default_factory=list)
    timer_mode: str = "unknown"
    nested_hvm: Defbool = None
    apic: Defbool = None
    dm_restrict: Defbool = None
    tee: str = "none"
    u: HvmInfo | PvInfo | PvhInfo = field(default_factory=PvInfo)
    arch_arm: ArmInfo = field(default_factory=ArmInfo)
    arch_x86: X86Info = field(default_factory=X86Info)
    altp2m: str = "disabled"
    vmtrace_buf_kb: int = 0
    vpmu: Defbool = None


@dataclass
class DomainConfig(Record):
    """libxl_domain_config: everything that one configuration says about a domain."""

    c_info: CreateInfo = field(default_factory=CreateInfo)
    b_info: BuildInfo = field(default_factory=BuildInfo)
    disks: list[Disk] = field(default_factory=list)
    nics: list[Nic] = field(default_factory=list)
    pcidevs: list[Pci] = field(default_factory=list)
    dtdevs: list[Dtdev] = field(default_factory=list)
    vfbs: list[Vfb] = field(default_factory=list)
    vkbs: list[Vkb] = field(default_factory=list)
    vtpms: list[Vtpm] = field(default_factory=list)
    p9s: list[P9] = field(default_factory=list)
    pvcallsifs: list[Pvcallsif] = field(default_factory=list)
    vdispls: list[Vdispl] = field(default_factory=list)
    vsnds: list[Vsnd] = field(default_factory=list)
    channels: list[Channel] = field(default_factory=list)
    usbctrls: list[Usbctrl] = field(default_factory=list)
    usbdevs: list[Usbdev] = field(default_factory=list)
    on_poweroff: str = "destroy"
    on_reboot: str = "destroy"
    on_watchdog: str = "destroy"
    on_crash: str = "destroy"
    on_soft_reset: str = "destroy"
    raw: RawConfig | None = field(default=None, repr=False, metadata={"printed": False})
    """The settings as they were written; `unsupported` looks at them."""

    @property
    def name(self) -> str:
        """The domain's name."""
        return self.c_info.name or ""

    @property
    def uuid(self) -> str:
        """The domain's UUID: 36 characters, lower case."""
        return self.c_info.uuid or ""

    @property
    def type(self) -> str:
        """The guest type: "pv", "pvh" or "hvm"."""
        return self.c_info.type

    @property
    def kernel(self) -> str | None:
        """Path of the kernel image on the host."""
        return self.b_info.kernel

    @property
    def ramdisk(self) -> str | None:
        """Path of the initial ramdisk on the host."""
        return self.b_info.ramdisk

    @property
    def cmdline(self) -> str:
        """The guest kernel's command line: `cmdline`, or else `root` and `extra`."""
        return self.b_info.cmdline or ""

    @property
    def maxmem_kib(self) -> int:
        """The most memory the domain may ever have, in KiB."""
        return self.b_info.max_memkb or DEFAULT_MEMORY_KIB

    @property
    def memory_kib(self) -> int:
        """The memory the domain starts with, in KiB."""
        target = self.b_info.target_memkb
        return self.maxmem_kib if target is None else target

    @property
    def max_vcpus(self) -> int:
        """How many vCPUs exist, at least 1."""
        return self.b_info.max_vcpus or 1

    @property
    def vcpus(self) -> int:
        """How many vCPUs are online at the start, at least 1."""
        return len(self.b_info.avail_vcpus) or 1
