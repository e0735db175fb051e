"""The settings that are lists of devices."""

from pyxen.config.cpuid import parse_cpuid_leaves, parse_cpuid_words
from pyxen.config.devices import Dtdev, Pci, Sdl, Vfb, Vkb, Vnc
from pyxen.config.disk import parse_disk
from pyxen.config.display import parse_vdispl, parse_vfb, parse_vkb
from pyxen.config.domain_config import DomainConfig, HvmInfo, PvInfo
from pyxen.config.pci import parse_pci
from pyxen.config.plain_devices import (
    parse_channel,
    parse_p9,
    parse_pvcalls,
    parse_usbctrl,
    parse_usbdev,
    parse_vtpm,
)
from pyxen.config.ranges import parse_iomem, parse_ioports, parse_irq
from pyxen.config.settings import Settings
from pyxen.config.sound import parse_vsnd
from pyxen.config.vdev import vdev_number
from pyxen.config.vif import parse_vif
from pyxen.errors import UserError

_DEVICE_MODELS = {
    "qemu-xen": "qemu_xen",
    "qemu-xen-traditional": "qemu_xen_traditional",
}


def read(cfg: DomainConfig, s: Settings) -> None:
    """Read them all, and the screen that top-level settings ask for."""
    _pci(cfg, s)
    b_info = cfg.b_info
    b_info.ioports = s.each("ioports", lambda text, _i, _w: parse_ioports(text))
    b_info.irqs = s.each("irqs", lambda text, _i, _w: parse_irq(text))
    b_info.iomem = s.each("iomem", lambda text, _i, _w: parse_iomem(text))
    cfg.dtdevs = s.each("dtdev", lambda text, _i, _w: Dtdev(text))
    cfg.disks = s.each("disk", lambda text, _i, _w: parse_disk([text]))
    cfg.p9s = s.each("p9", lambda text, _i, _w: parse_p9(text))
    cfg.vtpms = s.each("vtpm", lambda text, i, _w: parse_vtpm(text, i))
    cfg.vdispls = s.each("vdispl", lambda text, i, _w: parse_vdispl(text, i))
    cfg.pvcallsifs = s.each("pvcalls", lambda text, i, _w: parse_pvcalls(text, i))
    cfg.channels = s.each("channel", parse_channel)
    cfg.nics = s.each("vif", lambda text, i, warn: parse_vif([text], i, warn))
    cfg.usbctrls = s.each("usbctrl", lambda text, i, _w: parse_usbctrl(text, i))
    cfg.usbdevs = s.each("usbdev", lambda text, _i, _w: parse_usbdev(text))
    _warn_about_twins(cfg, s)
    _sound(cfg, s)
    _cpuid(cfg, s)
    _device_model(cfg, s)
    _screens(cfg, s)


def _pci(cfg: DomainConfig, s: Settings) -> None:
    # libxl's union makes this 0 ("strict") for every guest but HVM.
    hvm = cfg.b_info.u if isinstance(cfg.b_info.u, HvmInfo) else None
    defaults = Pci(
        msitranslate=bool(s.number("pci_msitranslate")),
        power_mgmt=bool(s.number("pci_power_mgmt")),
        permissive=bool(s.number("pci_permissive")),
        seize=bool(s.number("pci_seize")),
        rdm_policy=hvm.rdm.policy if hvm else "strict",
    )
    cfg.pcidevs = s.each("pci", lambda text, _i, _w: parse_pci(text, defaults))
    if cfg.pcidevs and isinstance(cfg.b_info.u, PvInfo):
        cfg.b_info.u.e820_host = True


def _warn_about_twins(cfg: DomainConfig, s: Settings) -> None:
    """Warn about what xl accepts until the guest is created, or until it misbehaves."""
    vdevs: dict[int, str] = {}
    for disk in cfg.disks:
        try:
            number = vdev_number(disk.vdev or "")
        except UserError as error:
            s.warn("disk", f"disk: {error.message}; {error.hint}")
            continue
        if number in vdevs:
            s.warn("disk", f"disk: {disk.vdev} and {vdevs[number]} are the same device")
        vdevs[number] = disk.vdev or ""
    macs: set[str] = set()
    for nic in cfg.nics:
        if nic.mac in macs:
            s.warn("vif", f"vif: two interfaces have the address {nic.mac}")
        macs.update(filter(None, [nic.mac]))


def _sound(cfg: DomainConfig, s: Settings) -> None:
    for index, items in enumerate(s.lists("vsnd") or []):
        card = s.guard("vsnd", parse_vsnd, items, index)
        if card is not None:
            cfg.vsnds.append(card)


def _cpuid(cfg: DomainConfig, s: Settings) -> None:
    def warn(message: str) -> None:
        s.warn("cpuid", message)

    if s.is_list("cpuid"):
        cfg.b_info.cpuid = parse_cpuid_leaves(s.strings("cpuid") or [], warn)
    elif (text := s.string("cpuid")) is not None:
        cfg.b_info.cpuid = parse_cpuid_words(text, warn)


def _device_model(cfg: DomainConfig, s: Settings) -> None:
    version = s.string("device_model_version")
    if version in _DEVICE_MODELS:
        cfg.b_info.device_model_version = _DEVICE_MODELS[version]
    elif version is not None:
        s.refuse("device_model_version", f"there is no device model {version!r}", "use qemu-xen")
    elif cfg.b_info.device_model is not None:
        message = "device_model_override is there and device_model_version does not say its kind"
        s.warn("device_model_override", message)


def _screens(cfg: DomainConfig, s: Settings) -> None:
    """Read `vfb` and `vkb`, or for want of them the screen that `vnc=1` alone asks for."""
    cfg.vfbs = s.each("vfb", parse_vfb)
    cfg.vkbs = [Vkb(devid=vfb.devid) for vfb in cfg.vfbs]
    u = cfg.b_info.u
    if isinstance(u, HvmInfo):
        _top_level_vnc(u.vnc, s)
        _top_level_sdl(u.sdl, s)
        u.keymap = s.string("keymap")
    elif cfg.type == "pv" and not cfg.vfbs and s.number("vnc"):
        vfb = Vfb(devid=0, keymap=s.string("keymap"))
        _top_level_vnc(vfb.vnc, s)
        _top_level_sdl(vfb.sdl, s)
        cfg.vfbs, cfg.vkbs = [vfb], [Vkb(devid=0)]
    first = len(cfg.vkbs)
    cfg.vkbs += s.each("vkb", lambda text, i, _w: parse_vkb(text, first + i))


def _top_level_vnc(vnc: Vnc, s: Settings) -> None:
    vnc.enable = s.boolean("vnc")
    vnc.listen = s.string("vnclisten")
    vnc.passwd = s.string("vncpasswd")
    vnc.display = s.number("vncdisplay") or 0
    vnc.findunused = s.boolean("vncunused")


def _top_level_sdl(sdl: Sdl, s: Settings) -> None:
    sdl.enable = s.boolean("sdl")
    sdl.opengl = s.boolean("opengl")
    sdl.display = s.string("display")
    sdl.xauthority = s.string("xauthority")
