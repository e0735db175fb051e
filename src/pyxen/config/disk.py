"""Disk specifications: the strings of the `disk` setting and the words of `xl block-attach`.

    target, format, vdev, access            positional, each may be empty
    key=value, flag                         between them or instead of them; target= comes last
    prefix:target, vdev[:cdrom], access     the form of xm, still in many files

Source: xl-disk-configuration(5), and what real xl accepts (a parameter reaches to the next comma,
of several readings the longest counts).
"""

import os
import re
from collections.abc import Iterable

from pyxen.config.devices import Disk
from pyxen.config.number import leading
from pyxen.config.report import nearest
from pyxen.errors import UserError

FORMATS = {"": "raw"} | {name: name for name in ("raw", "qcow", "qcow2", "vhd", "empty", "qed")}
BACKENDS = ("phy", "tap", "qdisk", "standalone")
SPECIFICATIONS = ("xen", "virtio")
ACCESS = {"r": 0, "ro": 0, "rw": 1, "w": 1, "": 1}

_STRINGS = {
    "vdev": "vdev",
    "script": "script",
    "backend": "backend_domname",
    "colo-host": "colo_host",
    "colo-export": "colo_export",
    "active-disk": "active_disk",
    "hidden-disk": "hidden_disk",
}
_FLAGS: dict[str, tuple[str, int | bool]] = {
    "cdrom": ("is_cdrom", 1),
    "direct-io-safe": ("direct_io_safe", True),
    "discard": ("discard_enable", True),
    "no-discard": ("discard_enable", False),
    "colo": ("colo_enable", True),
    "no-colo": ("colo_enable", False),
    "trusted": ("trusted", True),
    "untrusted": ("trusted", False),
}
_CHOICES = ("format", "devtype", "access", "backendtype", "specification", "colo-port")
KEYS = (*_STRINGS, *_CHOICES, "target")

_REMOTE = re.compile(r"nbd(\+unix)?:")
_KEY = re.compile(r"([a-z][-a-z0-9_]*)=")
_FORMAT_PREFIXES = ("raw", "qcow", "qcow2", "vhd")
_SCRIPT_PREFIXES = ("iscsi", "enbd", "nbd", "drbd")
_IGNORED_PREFIXES = ("tapdisk", "tap", "tap2", "aio", "ioemu", "file", "phy")


def parse_disk(words: Iterable[str]) -> Disk:
    """Read one disk from one or more strings that add up.

    Raises: UserError (exit code 1) naming the parameter and what it may be.
    """
    words = list(words)
    parser = _DiskParser()
    for word in words:
        parser.read(word)
    return parser.finish(", ".join(words))


def absolute_target(target: str) -> str:
    """A target as seen from here: xend has another working directory.

    A name without a slash at its start may be that of a block device, as for Xen's block script.
    """
    if not target or os.path.isabs(target) or _REMOTE.match(target):
        return target
    device = f"/dev/{target}"
    is_device = not os.path.exists(target) and os.path.exists(device)
    return device if is_device else os.path.abspath(target)


class _DiskParser:
    def __init__(self) -> None:
        self._disk = Disk(readwrite=1)
        self._access_given = False
        self._had_prefix = False
        self._spec = ""

    def read(self, spec: str) -> None:
        self._spec = spec
        rest = spec.lstrip(" \t\n")
        while rest:
            rest = self._parameter(rest).lstrip(" \t\n")

    def finish(self, spec: str) -> Disk:
        self._spec = spec
        disk = self._disk
        if disk.format == "unknown":
            disk.format = "raw"
        if disk.is_cdrom:
            disk.removable, disk.readwrite = 1, 0
            if not disk.pdev_path:
                disk.format = "empty"
        if disk.vdev is None:
            raise self._error("it names no vdev", "say which device the guest sees: vdev=xvda")
        if disk.pdev_path is None and not disk.removable:
            raise self._error("it names no target", "say where the data is: target=/path/of/image")
        return disk

    def _parameter(self, rest: str) -> str:
        """Apply the parameter at the start of `rest`, return what follows it."""
        prefix = _prefix_at(rest)
        if prefix:
            self._prefix(prefix)
            return rest[len(prefix) + 1 :]
        key = _KEY.match(rest)
        if key and key[1] == "target":
            self._set_string("target", "pdev_path", key.string[key.end() :].removesuffix(","))
            return ""
        word, _, after = rest.partition(",")
        if key:
            self._keyed(key[1], word[key.end() :])
        elif word in _FLAGS:
            attribute, value = _FLAGS[word]
            setattr(self._disk, attribute, value)
        elif "=" in word:
            hint = "a target that contains '=' or ',' is written target=…, as the last parameter"
            raise self._error(f"{word!r} is not a parameter", hint)
        else:
            self._positional(word)
        return after

    def _prefix(self, prefix: str) -> None:
        self._had_prefix = True
        if prefix in _FORMAT_PREFIXES:
            self._set_once("format", "format", prefix)
        elif prefix in _SCRIPT_PREFIXES:
            self._set_string("script", "script", f"block-{prefix}")
        elif prefix not in _IGNORED_PREFIXES:
            known = (*_FORMAT_PREFIXES, *_SCRIPT_PREFIXES, *_IGNORED_PREFIXES)
            guess = nearest(prefix, known)
            hint = "a target that contains ':' is written target=…, as the last parameter"
            raise self._error(f"there is no disk prefix '{prefix}:'{guess}", hint)

    def _keyed(self, key: str, value: str) -> None:
        if key in _STRINGS:
            self._set_string(key, _STRINGS[key], value)
            return
        match key:
            case "format":
                self._format(value)
            case "access":
                self._access(value)
            case "backendtype":
                self._set_once(key, "backend", self._choice(key, value, BACKENDS))
            case "specification":
                self._set_once(key, key, self._choice(key, value, SPECIFICATIONS))
            case "devtype":
                self._disk.is_cdrom = int(self._choice(key, value, ("cdrom", "disk")) == "cdrom")
            case "colo-port":
                self._disk.colo_port = leading(value, 10)
                if not self._disk.colo_port:
                    raise self._error(f"colo-port must be a port number, not {value!r}", "")
            case _:
                guess = nearest(key, (*KEYS, *_FLAGS))
                hint = f"the keys are {', '.join(key for key in KEYS if 'colo' not in key)}"
                raise self._error(f"there is no disk key {key!r}{guess}", hint)

    def _positional(self, word: str) -> None:
        disk = self._disk
        if disk.pdev_path is None:
            disk.pdev_path = word
        elif not self._had_prefix and disk.format == "unknown":
            if not disk.pdev_path and self._vdev_with_devtype(word):
                disk.format = "empty"
            else:
                self._format(word)
        elif disk.vdev is None:
            if not self._vdev_with_devtype(word):
                disk.vdev = word
        elif not self._access_given:
            self._access_given = True
            self._access(word)
        else:
            hint = "the order is target, format, vdev, access; anything else is written key=value"
            raise self._error(f"{word!r} is one parameter too many", hint)

    def _vdev_with_devtype(self, word: str) -> bool:
        vdev, colon, devtype = word.rpartition(":")
        if not colon:
            return False
        self._set_string("vdev", "vdev", vdev)
        self._disk.is_cdrom = int(self._choice("devtype", devtype, ("cdrom", "disk")) == "cdrom")
        return True

    def _format(self, word: str) -> None:
        self._set_once("format", "format", FORMATS[self._choice("format", word, tuple(FORMATS))])

    def _access(self, word: str) -> None:
        self._disk.readwrite = ACCESS[self._choice("access", word, tuple(ACCESS))]

    def _choice(self, key: str, value: str, choices: tuple[str, ...]) -> str:
        if value in choices:
            return value
        hint = f"use {', '.join(choice for choice in choices if choice)}"
        raise self._error(f"{value!r} is no {key}", hint)

    def _set_once(self, key: str, attribute: str, value: str) -> None:
        if getattr(self._disk, attribute) not in ("unknown", value):
            raise self._error(f"{key} is given twice", "")
        setattr(self._disk, attribute, value)

    def _set_string(self, key: str, attribute: str, value: str) -> None:
        if getattr(self._disk, attribute):
            raise self._error(f"{key} is given twice", "")
        setattr(self._disk, attribute, value)

    def _error(self, message: str, hint: str) -> UserError:
        return UserError(f"disk '{self._spec}': {message}", hint, 1)


def _prefix_at(rest: str) -> str:
    """Return the xm-style prefix that `rest` starts with, without its colon, or "".

    A known prefix counts before anything; another word before a colon only if what follows the
    colon does not look like the rest of a name, so that `hdc:cdrom` is a vdev.
    """
    match = re.match(r"([a-z][a-z0-9]*):", rest)
    if not match:
        return ""
    if match[1] in (*_FORMAT_PREFIXES, *_SCRIPT_PREFIXES, *_IGNORED_PREFIXES):
        return match[1]
    follows = rest[match.end() : match.end() + 1]
    return match[1] if not re.match(r"[a-z0-9]", follows) else ""
