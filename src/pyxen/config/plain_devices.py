"""Devices whose specification is a plain list of keys: `vtpm`, `p9`, `pvcalls`, `channel`,
`usbctrl`, `usbdev`.

Source: xl.cfg(5).
"""

from collections.abc import Callable

from pyxen.config.devices import (
    P9,
    Channel,
    PtyConnection,
    Pvcallsif,
    SocketConnection,
    Usbctrl,
    Usbdev,
    Vtpm,
)
from pyxen.config.keyvalue import (
    Entry,
    any_case,
    apply,
    apply_all,
    loose_int,
    loose_unsigned,
    text,
    uuid,
    words,
)
from pyxen.config.report import nearest
from pyxen.errors import UserError

_VTPM = {"backend": Entry("backend_domname", text), "uuid": Entry("uuid", uuid)}
_P9 = {
    "tag": Entry("tag", text),
    "path": Entry("path", text),
    "security_model": Entry("security_model", text),
    "backend": Entry("backend_domname", text),
}
_PVCALLS = {"backend": Entry("backend_domname", text)}
_USBCTRL = {
    "type": Entry("type", any_case("auto", "pv", "devicemodel", "qusb")),
    "version": Entry("version", loose_int),
    "ports": Entry("ports", loose_int),
}
_USBDEV = {
    "type": Entry("type", any_case("hostdev")),
    "hostbus": Entry("hostbus", lambda value: loose_unsigned(value) & 0xFF),
    "hostaddr": Entry("hostaddr", lambda value: loose_unsigned(value) & 0xFF),
    "controller": Entry("ctrl", loose_int),
    "port": Entry("port", loose_int),
}
_HOSTDEV_KEYS = ("type", "hostbus", "hostaddr")
_CHANNEL_KEYS = ("backend", "name", "path", "connection")


def parse_vtpm(spec: str, devid: int) -> Vtpm:
    """Read one virtual TPM. Raises: UserError (exit code 1)."""
    vtpm = Vtpm(devid=devid)
    apply_all(vtpm, _VTPM, spec, f"vtpm '{spec}'")
    if vtpm.backend_domname is None:
        raise UserError(f"vtpm '{spec}': it names no backend", "add backend=DOMAIN", 1)
    return vtpm


def parse_p9(spec: str) -> P9:
    """Read one shared directory. Raises: UserError (exit code 1).

    Its devid stays -1, as in xl 4.17: the tool stack numbers it.
    """
    p9 = P9()
    apply_all(p9, _P9, spec, f"p9 '{spec}'")
    missing = [key for key in ("tag", "path", "security_model") if getattr(p9, key) is None]
    if missing:
        hint = "write tag=NAME,path=/directory,security_model=none"
        raise UserError(f"p9 '{spec}': {' and '.join(missing)} missing", hint, 1)
    return p9


def parse_pvcalls(spec: str, devid: int) -> Pvcallsif:
    """Read one PV calls interface. Raises: UserError (exit code 1)."""
    interface = Pvcallsif(devid=devid)
    apply_all(interface, _PVCALLS, spec, f"pvcalls '{spec}'")
    return interface


def parse_usbctrl(spec: str, devid: int) -> Usbctrl:
    """Read one USB controller. Raises: UserError (exit code 1)."""
    controller = Usbctrl(devid=devid)
    apply_all(controller, _USBCTRL, spec, f"usbctrl '{spec}'")
    return controller


def parse_usbdev(spec: str) -> Usbdev:
    """Read one USB device for passthrough. Raises: UserError (exit code 1)."""
    what = f"usbdev '{spec}'"
    device = Usbdev()
    for word in words(spec):
        key = word.partition("=")[0]
        apply(device.u if key in _HOSTDEV_KEYS else device, _USBDEV, word, what)
    return device


def parse_channel(spec: str, devid: int, warn: Callable[[str], None]) -> Channel:
    """Read one channel. Raises: UserError (exit code 1)."""
    what = f"channel '{spec}'"
    given: dict[str, str] = {}
    for word in words(spec):
        key, equals, value = (part.strip() for part in word.partition("="))
        if not equals or not value:
            raise UserError(f"{what}: {word!r} is not key=value", "", 1)
        if key in _CHANNEL_KEYS:
            given[key] = value
        else:
            warn(f"{what}: there is no key {key!r}{nearest(key, _CHANNEL_KEYS)}; it is ignored")
    channel = Channel(given.get("backend"), devid, given.get("name"))
    channel.connection = _connection(given, what)
    return channel


def _connection(given: dict[str, str], what: str) -> PtyConnection | SocketConnection:
    match given.get("connection"):
        case "pty":
            return PtyConnection()
        case "socket" if "path" in given:
            return SocketConnection(given["path"])
        case "socket":
            raise UserError(f"{what}: a socket needs a path", "add path=/where/it/listens", 1)
    raise UserError(f"{what}: it needs a connection", "add connection=pty or connection=socket", 1)
