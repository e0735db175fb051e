"""Frame buffers, keyboards and displays: `vfb`, `vkb`, `vdispl`.

Source: xl.cfg(5) "vfb", "vkb", "vdispl"; public/io/kbdif.h (names of the keyboard's keys).
"""

from collections.abc import Callable

from pyxen.config.devices import Connector, Vdispl, Vfb, Vkb
from pyxen.config.keyvalue import (
    Entry,
    any_case,
    apply,
    apply_all,
    loose_int,
    loose_unsigned,
    text,
    words,
    yes,
)
from pyxen.config.number import whole
from pyxen.config.report import nearest
from pyxen.errors import UserError

VNC_TABLE = {
    "vnc": Entry("enable", yes),
    "vnclisten": Entry("listen", text),
    "vncpasswd": Entry("passwd", text),
    "vncdisplay": Entry("display", loose_int),
    "vncunused": Entry("findunused", yes),
}
SDL_TABLE = {
    "sdl": Entry("enable", yes),
    "opengl": Entry("opengl", yes),
    "display": Entry("display", text),
    "xauthority": Entry("xauthority", text),
}
_VFB_TABLE = {"keymap": Entry("keymap", text)}
_VFB_KEYS = (*VNC_TABLE, *SDL_TABLE, *_VFB_TABLE)
_VKB_TABLE = {
    "backend": Entry("backend_domname", text),
    "backend-type": Entry("backend_type", any_case("qemu", "linux")),
    "unique-id": Entry("unique_id", text),
    "feature-disable-keyboard": Entry("feature_disable_keyboard", yes),
    "feature-disable-pointer": Entry("feature_disable_pointer", yes),
    "feature-abs-pointer": Entry("feature_abs_pointer", yes),
    "feature-raw-pointer": Entry("feature_raw_pointer", yes),
    "feature-multi-touch": Entry("feature_multi_touch", yes),
    "multi-touch-width": Entry("multi_touch_width", loose_unsigned),
    "multi-touch-height": Entry("multi_touch_height", loose_unsigned),
    "multi-touch-num-contacts": Entry("multi_touch_num_contacts", loose_unsigned),
    "width": Entry("width", loose_unsigned),
    "height": Entry("height", loose_unsigned),
}


def parse_vfb(spec: str, devid: int, warn: Callable[[str], None]) -> Vfb:
    """Read one frame buffer. As in xl an unknown key is left out, but not in silence."""
    vfb = Vfb(devid=devid)
    for word in words(spec):
        key, equals, _ = word.partition("=")
        if not equals:
            warn(f"vfb '{spec}': {word!r} has no '='; it and what follows is ignored")
            break
        if key in VNC_TABLE:
            apply(vfb.vnc, VNC_TABLE, word, "vfb")
        elif key in SDL_TABLE:
            apply(vfb.sdl, SDL_TABLE, word, "vfb")
        elif key in _VFB_TABLE:
            apply(vfb, _VFB_TABLE, word, "vfb")
        elif key != "type":  # xm's way to say vnc or sdl; harmless, and still in many files
            warn(f"vfb '{spec}': there is no key {key!r}{nearest(key, _VFB_KEYS)}; it is ignored")
    return vfb


def parse_vkb(spec: str, devid: int) -> Vkb:
    """Read one keyboard.

    Raises: UserError (exit code 1).
    """
    what = f"vkb '{spec}'"
    vkb = Vkb(devid=devid)
    apply_all(vkb, _VKB_TABLE, spec, what)
    if vkb.backend_type == "unknown":
        raise UserError(f"{what}: it names no backend-type", "add backend-type=qemu", 1)
    sized = vkb.multi_touch_height or vkb.multi_touch_width or vkb.multi_touch_num_contacts
    if vkb.feature_multi_touch and not sized:
        hint = "add multi-touch-width, multi-touch-height and multi-touch-num-contacts"
        raise UserError(f"{what}: multi touch needs a size", hint, 1)
    vkb.feature_multi_touch = vkb.feature_multi_touch or bool(sized)
    return vkb


def parse_vdispl(spec: str, devid: int) -> Vdispl:
    """Read one display.

    Raises: UserError (exit code 1).
    """
    vdispl = Vdispl(devid=devid)
    apply_all(vdispl, _VDISPL_TABLE, spec, f"vdispl '{spec}'")
    if not vdispl.connectors:
        raise UserError(f"vdispl '{spec}': it has no connector", "add connectors=id0:1920x1080", 1)
    return vdispl


def _connectors(value: str) -> list[Connector]:
    return [_connector(part) for part in value.split(";") if part]


def _connector(part: str) -> Connector:
    unique_id, _, resolution = part.partition(":")
    width, _, height = resolution.partition("x")
    sizes = whole(width, 10), whole(height, 10)
    if not unique_id or sizes[0] is None or sizes[1] is None:
        raise ValueError("id:WIDTHxHEIGHT, several with ';' between them")
    return Connector(unique_id, sizes[0], sizes[1])


_VDISPL_TABLE = {
    "backend": Entry("backend_domname", text),
    "be-alloc": Entry("be_alloc", yes),
    "connectors": Entry("connectors", _connectors),
}
