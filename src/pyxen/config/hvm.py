"""Settings of HVM guests that take more than a line of the schema."""

from os import urandom

from pyxen.config.domain_config import HvmInfo
from pyxen.config.record import choose
from pyxen.config.report import nearest
from pyxen.config.schema import BIOSES, VIRIDIAN
from pyxen.config.settings import Settings

MCA_CAP_LMCE = 1
"""XEN_HVM_MCA_CAP_LMCE. Source: public/hvm/params.h."""

MMIO_HOLE_LOW, MMIO_HOLE_HIGH = 256, 3840
"""Bounds of the hole in MiB. Source: public/hvm/e820.h, HVM_BELOW_4G_MMIO_*."""

_VGAS = {"stdvga": "std", "cirrus": "cirrus", "none": "none", "qxl": "qxl"}


def read(hvm: HvmInfo, s: Settings) -> None:
    """Read them all."""
    _firmware(hvm, s)
    _viridian(hvm, s)
    _mmio_hole(hvm, s)
    _generation_id(hvm, s)
    _machine_check(hvm, s)
    _graphics(hvm, s)
    _string_or_list(hvm, s, "serial")
    _string_or_list(hvm, s, "usbdevice")
    _reserved_memory(hvm, s)


def _firmware(hvm: HvmInfo, s: Settings) -> None:
    """Read `firmware`: a BIOS kind, uefi, bios, or the path of an image."""
    if hvm.system_firmware is not None and hvm.bios == "unknown":
        s.warn("bios_path_override", "bios_path_override is there and bios does not say its kind")
    text = s.string("firmware")
    if text is None:
        return
    bios = choose(text, BIOSES)
    if bios:
        hvm.bios = bios
    elif text and "uefi".startswith(text):
        hvm.bios = "ovmf"
    elif not (text and "bios".startswith(text)):
        hvm.firmware = text


def _viridian(hvm: HvmInfo, s: Settings) -> None:
    if not s.is_list("viridian"):
        hvm.viridian = s.boolean("viridian")
        return
    enable: set[int] = set()
    disable: set[int] = set()
    for word in s.strings("viridian") or []:
        name = word.removeprefix("!")
        if word == "all":
            enable = set(range(len(VIRIDIAN)))
        elif word == "defaults":
            hvm.viridian = True
        elif (group := choose(name, VIRIDIAN)) is None:
            message = f"viridian: there is no {name!r}{nearest(name, VIRIDIAN)}"
            s.refuse("viridian", message, f"use {', '.join(VIRIDIAN)}", 3)
        else:
            on, off = (disable, enable) if word.startswith("!") else (enable, disable)
            on.add(VIRIDIAN.index(group))
            off.discard(VIRIDIAN.index(group))
    hvm.viridian_enable, hvm.viridian_disable = sorted(enable), sorted(disable)


def _mmio_hole(hvm: HvmInfo, s: Settings) -> None:
    mib = s.number("mmio_hole")
    if mib is None:
        return
    if not MMIO_HOLE_LOW <= mib <= MMIO_HOLE_HIGH:
        s.refuse("mmio_hole", f"mmio_hole: {mib} is not between 256 and 3840 MiB")
        return
    hvm.mmio_hole_memkb = mib * 1024


def _generation_id(hvm: HvmInfo, s: Settings) -> None:
    text = s.string("ms_vm_genid")
    if text == "generate":
        hvm.ms_vm_genid = list(urandom(16))
    elif text not in (None, "none"):
        s.refuse("ms_vm_genid", f"ms_vm_genid: there is no {text!r}", "use generate or none")


def _machine_check(hvm: HvmInfo, s: Settings) -> None:
    for word in s.strings("mca_caps") or []:
        if word == "lmce":
            hvm.mca_caps |= MCA_CAP_LMCE
        else:
            s.refuse("mca_caps", f"mca_caps: there is no {word!r}", "use lmce", 3)


def _graphics(hvm: HvmInfo, s: Settings) -> None:
    text = s.string("vga")
    if text in _VGAS:
        hvm.vga.kind = _VGAS[text]
    elif text is not None:
        s.refuse("vga", f"there is no vga {text!r}", f"use {', '.join(_VGAS)}")
    elif (stdvga := s.boolean("stdvga")) is not None:
        hvm.vga.kind = "std" if stdvga else "cirrus"
    passthru, number = s.string("gfx_passthru"), s.number("gfx_passthru", quiet=True)
    if number is not None:
        hvm.gfx_passthru = number != 0
    elif passthru is not None:
        kind = choose(passthru, ("default", "igd"))
        if kind is None:
            s.refuse("gfx_passthru", f"gfx_passthru: there is no {passthru!r}", "use igd, or 1")
        hvm.gfx_passthru, hvm.gfx_passthru_kind = True, kind or "default"
    if hvm.vnc.listen and hvm.vnc.display and ":" in hvm.vnc.listen:
        s.refuse("vncdisplay", "vnclisten and vncdisplay both name a display", "keep one of them")


def _string_or_list(hvm: HvmInfo, s: Settings, name: str) -> None:
    if s.is_list(name):
        setattr(hvm, f"{name}_list", s.strings(name) or [])
    else:
        setattr(hvm, name, s.string(name))


def _reserved_memory(hvm: HvmInfo, s: Settings) -> None:
    text = s.string("rdm")
    for word in filter(None, (text or "").split(",")):
        key, _, value = word.partition("=")
        if key == "strategy" and value == "host":
            hvm.rdm.strategy = value
        elif key == "policy" and (policy := choose(value, ("strict", "relaxed"))):
            hvm.rdm.policy = policy
        else:
            s.warn("rdm", f"rdm: {word!r} is ignored; write strategy=host,policy=relaxed")
