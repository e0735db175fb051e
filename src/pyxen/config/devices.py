"""The devices of a domain, as a configuration describes them.

Source: tools/libs/light/libxl_types.idl (names, order and defaults), xl.cfg(5) (meaning).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from pyxen.config.record import Bitmap, Defbool, Record, field_order

COLO_NIC_FIELDS = (
    "coloft_forwarddev",
    *(
        f"colo_sock_{part}_{end}"
        for part in ("mirror", "compare_pri_in", "compare_sec_in", "compare_notify")
        for end in ("id", "ip", "port")
    ),
    *(f"colo_sock_redirector{n}_{end}" for n in range(3) for end in ("id", "ip", "port")),
    "colo_filter_mirror_queue",
    "colo_filter_mirror_outdev",
    *(f"colo_filter_redirector0_{end}" for end in ("queue", "indev", "outdev")),
    *(f"colo_filter_redirector1_{end}" for end in ("queue", "indev", "outdev")),
    *(f"colo_compare_{end}" for end in ("pri_in", "sec_in", "out", "notify_dev")),
    *(f"colo_sock_sec_redirector{n}_{end}" for n in range(2) for end in ("id", "ip", "port")),
    *(f"colo_filter_sec_redirector0_{end}" for end in ("queue", "indev", "outdev")),
    *(f"colo_filter_sec_redirector1_{end}" for end in ("queue", "indev", "outdev")),
    "colo_filter_sec_rewriter0_queue",
    "colo_checkpoint_host",
    "colo_checkpoint_port",
)


@dataclass
class Disk(Record):
    """A block device. `pdev_path` is the target on the host, `vdev` the name the guest sees."""

    backend_domname: str | None = None
    pdev_path: str | None = None
    vdev: str | None = None
    backend: str = "unknown"
    format: str = "unknown"
    script: str | None = None
    removable: int = 0
    readwrite: int = 0
    is_cdrom: int = 0
    direct_io_safe: bool = False
    discard_enable: Defbool = None
    specification: str = "unknown"
    colo_enable: Defbool = None
    colo_host: str | None = None
    colo_port: int = 0
    colo_export: str | None = None
    active_disk: str | None = None
    hidden_disk: str | None = None
    trusted: Defbool = None


@dataclass
class Nic(Record):
    """A network interface. `mac` is in lower case with colons, None for a random one."""

    backend_domname: str | None = None
    devid: int = -1
    mtu: int = 0
    model: str | None = None
    mac: str | None = None
    ip: str | None = None
    bridge: str | None = None
    ifname: str | None = None
    script: str | None = None
    nictype: str = "unknown"
    rate_bytes_per_interval: int = 0
    rate_interval_usecs: int = 0
    gatewaydev: str | None = None
    colo: dict[str, str] = field(default_factory=dict, metadata=field_order(COLO_NIC_FIELDS))
    trusted: Defbool = None


@dataclass
class Pci(Record):
    """A PCI device of the host for passthrough."""

    func: int = 0
    dev: int = 0
    bus: int = 0
    domain: int = 0
    vdevfn: int = 0
    vfunc_mask: int = 0
    msitranslate: bool = False
    power_mgmt: bool = False
    permissive: bool = False
    seize: bool = False
    rdm_policy: str = "invalid"
    name: str | None = None


@dataclass
class Dtdev(Record):
    """A device-tree node for passthrough (Arm)."""

    path: str | None = None


@dataclass
class Vnc(Record):
    """A VNC server. `display` is the port minus 5900."""

    enable: Defbool = None
    listen: str | None = None
    passwd: str | None = None
    display: int = 0
    findunused: Defbool = None


@dataclass
class Sdl(Record):
    """A window on the host's own display."""

    enable: Defbool = None
    opengl: Defbool = None
    display: str | None = None
    xauthority: str | None = None


@dataclass
class Vfb(Record):
    """A paravirtual frame buffer."""

    backend_domname: str | None = None
    devid: int = -1
    vnc: Vnc = field(default_factory=Vnc)
    sdl: Sdl = field(default_factory=Sdl)
    keymap: str | None = None


@dataclass
class Vkb(Record):
    """A paravirtual keyboard and pointer."""

    backend_domname: str | None = None
    devid: int = -1
    backend_type: str = "unknown"
    unique_id: str | None = None
    feature_disable_keyboard: bool = False
    feature_disable_pointer: bool = False
    feature_abs_pointer: bool = False
    feature_raw_pointer: bool = False
    feature_multi_touch: bool = False
    width: int = 0
    height: int = 0
    multi_touch_width: int = 0
    multi_touch_height: int = 0
    multi_touch_num_contacts: int = 0


@dataclass
class Vtpm(Record):
    """A virtual TPM; `uuid` in lower case."""

    backend_domname: str | None = None
    devid: int = -1
    uuid: str | None = None


@dataclass
class P9(Record):
    """A directory of the host shared through 9pfs."""

    backend_domname: str | None = None
    tag: str | None = None
    path: str | None = None
    security_model: str | None = None
    devid: int = -1


@dataclass
class Pvcallsif(Record):
    """A PV calls interface: sockets of the back-end domain."""

    backend_domname: str | None = None
    devid: int = -1


@dataclass
class Connector(Record):
    """One output of a virtual display, in pixels."""

    unique_id: str | None = None
    width: int = 0
    height: int = 0


@dataclass
class Vdispl(Record):
    """A paravirtual display."""

    backend_domname: str | None = None
    devid: int = -1
    be_alloc: bool = False
    connectors: list[Connector] = field(default_factory=list)


@dataclass
class SoundParams(Record):
    """What a sound card, PCM device or stream can do."""

    sample_rates: list[int] = field(default_factory=list)
    sample_formats: list[str] = field(default_factory=list)
    channels_min: int = 0
    channels_max: int = 0
    buffer_size: int = 0


@dataclass
class SoundStream(Record):
    """A stream of a PCM device: `type` is "p" (playback) or "c" (capture)."""

    unique_id: str | None = None
    type: str | None = None
    params: SoundParams = field(default_factory=SoundParams)


@dataclass
class SoundPcm(Record):
    """A PCM device of a sound card."""

    name: str | None = None
    params: SoundParams = field(default_factory=SoundParams)
    streams: list[SoundStream] = field(default_factory=list)


@dataclass
class Vsnd(Record):
    """A paravirtual sound card."""

    backend_domname: str | None = None
    devid: int = -1
    short_name: str | None = None
    long_name: str | None = None
    params: SoundParams = field(default_factory=SoundParams)
    pcms: list[SoundPcm] = field(default_factory=list)


@dataclass
class PtyConnection(Record):
    """A channel that ends in a pseudo terminal on the host."""

    union_key: ClassVar[str] = "connection.pty"


@dataclass
class SocketConnection(Record):
    """A channel that ends in a listening Unix socket on the host."""

    union_key: ClassVar[str] = "connection.socket"
    path: str | None = None


@dataclass
class Channel(Record):
    """A named byte stream between the guest and the host."""

    backend_domname: str | None = None
    devid: int = -1
    name: str | None = None
    connection: PtyConnection | SocketConnection = field(default_factory=PtyConnection)


@dataclass
class Usbctrl(Record):
    """A virtual USB controller."""

    type: str = "auto"
    devid: int = -1
    version: int = 0
    ports: int = 0
    backend_domname: str | None = None


@dataclass
class HostUsbDevice(Record):
    """The host's USB device behind a `Usbdev`: so far the only type of those."""

    union_key: ClassVar[str] = "type.hostdev"
    type: str = field(default="hostdev", metadata={"printed": False})
    hostbus: int = 0
    hostaddr: int = 0


@dataclass
class Usbdev(Record):
    """A USB device for passthrough."""

    ctrl: int = -1
    port: int = 0
    u: HostUsbDevice = field(default_factory=HostUsbDevice)


@dataclass
class VnumaNode(Record):
    """A virtual NUMA node."""

    memkb: int | None = None
    distances: list[int] = field(default_factory=list)
    pnode: int = 0
    vcpus: Bitmap = field(default_factory=list)


@dataclass
class IoportRange(Record):
    """I/O ports the guest may use: `number` of them from `first`."""

    first: int = 0
    number: int = 0


@dataclass
class IomemRange(Record):
    """Host frames mapped into the guest: `number` frames from frame `start`, at frame `gfn`."""

    start: int = 0
    number: int = 0
    gfn: int | None = None
