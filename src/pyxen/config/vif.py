"""Network interface specifications: the `vif` setting and the words of `xl network-attach`.

Source: xl-network-configuration(5). Differs from xl on purpose: an unknown key, and a `type` or
`mac` that cannot be read, are refused; xl prints a line and leaves them out.
"""

import re
from collections.abc import Callable, Iterable

from pyxen.config.devices import COLO_NIC_FIELDS, Nic
from pyxen.config.keyvalue import Entry, apply, one_of, text, unknown, unsigned, words
from pyxen.config.number import leading
from pyxen.errors import UserError

U32 = (1 << 32) - 1
DEFAULT_RATE_INTERVAL_USECS = 50_000

_RATE = re.compile(r"([0-9]+)([GMK]?)([Bb])/s")
_INTERVAL = re.compile(r"([0-9]+)([mu]?)s?")
_RATE_FACTOR = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9}
_INTERVAL_USECS = {"": 10**6, "m": 10**3, "u": 1}


def parse_mac(value: str) -> str:
    """Read a MAC address of six bytes, with ':' or '-' between them.

    Raises: ValueError.
    """
    parts = re.split("[:-]", value)
    if len(parts) != 6 or not all(re.fullmatch("[0-9a-fA-F]{1,2}", part) for part in parts):
        raise ValueError("six bytes in hexadecimal, such as 00:16:3e:12:34:56")
    return ":".join(f"{int(part, 16):02x}" for part in parts)


TABLE = {
    "type": Entry("nictype", one_of(vif="vif", ioemu="vif_ioemu")),
    "mac": Entry("mac", parse_mac),
    "bridge": Entry("bridge", text),
    "netdev": Entry("gatewaydev", text),
    "gatewaydev": Entry("gatewaydev", text),
    "ip": Entry("ip", text),
    "script": Entry("script", text),
    "backend": Entry("backend_domname", text),
    "vifname": Entry("ifname", text),
    "model": Entry("model", text),
    "devid": Entry("devid", unsigned),
    "mtu": Entry("mtu", unsigned),
}
FLAGS = {"trusted": True, "untrusted": False}
_COLO_KEYS = {name.removeprefix("coloft_"): name for name in COLO_NIC_FIELDS}
KEYS = (*TABLE, "rate", "accel", *FLAGS, *_COLO_KEYS)


def parse_vif(specs: Iterable[str], devid: int, warn: Callable[[str], None]) -> Nic:
    """Read one interface; `devid` is its number unless the specification has its own.

    Raises: UserError (exit code 1) naming the key.
    """
    nic = Nic(devid=devid)
    for spec in specs:
        for word in words(spec):
            _apply_word(nic, word, f"vif '{spec}'", warn)
    if nic.mac == "00:00:00:00:00:00":
        nic.mac = None
    elif nic.mac and int(nic.mac[:2], 16) & 1:
        warn(f"vif: {nic.mac} is a multicast address; guests refuse it as their own")
    return nic


def _apply_word(nic: Nic, word: str, what: str, warn: Callable[[str], None]) -> None:
    key, equals, value = word.partition("=")
    if key in FLAGS and not equals:
        nic.trusted = FLAGS[key]
    elif key == "rate" and equals:
        _rate(nic, value, what)
    elif key == "accel" and equals:
        warn("vif: accel is ignored, there is no accelerated network plug-in")
    elif key in _COLO_KEYS and equals:
        nic.colo[_COLO_KEYS[key]] = value
    elif key in FLAGS:
        hint = "write trusted or untrusted alone"
        raise UserError(f"{what}: {key!r} takes no value", hint, 1)
    elif key not in TABLE:
        # The COLO keys are many and never meant: they would bury the others in the hint.
        visible = (*TABLE, "rate", *FLAGS)
        raise unknown(word, visible, what)
    else:
        if key == "netdev":
            warn("vif: netdev is the old name of gatewaydev")
        apply(nic, TABLE, word, what)


def _rate(nic: Nic, value: str, what: str) -> None:
    hint = "write for instance rate=10Mb/s, or rate=1MB/s@20ms to set the interval"
    bytes_text, at, interval_text = value.partition("@")
    rate = _RATE.fullmatch(bytes_text)
    interval = _INTERVAL.fullmatch(interval_text) if at else None
    if rate is None or (at and interval is None):
        raise UserError(f"{what}: {value!r} is no rate", hint, 1)
    number = leading(rate[1])
    usecs = DEFAULT_RATE_INTERVAL_USECS
    if interval:
        usecs = leading(interval[1]) * _INTERVAL_USECS[interval[2]]
    if not 0 < number <= U32 or not 0 < usecs <= U32:
        raise UserError(f"{what}: rate={value} is out of range", hint, 1)
    per_second = number * _RATE_FACTOR[rate[2]] // (8 if rate[3] == "b" else 1)
    nic.rate_bytes_per_interval = per_second * usecs // 1_000_000
    nic.rate_interval_usecs = usecs
