"""Xen's own configuration library, called through ctypes, as the judge in differential tests.

Source of the layouts: libxlutil.h and _libxl_types.h of Xen 4.17.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import byref, c_bool, c_char_p, c_int, c_uint32, c_uint64, c_void_p


class DeviceDisk(ctypes.Structure):
    """libxl_device_disk."""

    _fields_ = (
        ("backend_domid", c_uint32),
        ("backend_domname", c_char_p),
        ("pdev_path", c_char_p),
        ("vdev", c_char_p),
        ("backend", c_int),
        ("format", c_int),
        ("script", c_char_p),
        ("removable", c_int),
        ("readwrite", c_int),
        ("is_cdrom", c_int),
        ("direct_io_safe", c_bool),
        ("discard_enable", c_int),
        ("specification", c_int),
        ("transport", c_int),
        ("irq", c_uint32),
        ("base", c_uint64),
        ("colo_enable", c_int),
        ("colo_restore_enable", c_int),
        ("colo_host", c_char_p),
        ("colo_port", c_int),
        ("colo_export", c_char_p),
        ("active_disk", c_char_p),
        ("hidden_disk", c_char_p),
        ("trusted", c_int),
    )


class Xlu:
    """libxlutil, with its messages thrown away."""

    def __init__(self) -> None:
        self._xlu = ctypes.CDLL("libxlutil.so.4.17")
        self._libc = ctypes.CDLL(None)
        self._libc.fopen.restype = c_void_p
        self._null = c_void_p(self._libc.fopen(b"/dev/null", b"w"))
        self._xlu.xlu_cfg_init.restype = c_void_p
        self._xlu.xlu_cfg_get_listitem.restype = c_char_p

    def close(self) -> None:
        """Close the file that takes the messages."""
        self._libc.fclose(self._null)

    @contextmanager
    def _config(self) -> Iterator[c_void_p]:
        config = c_void_p(self._xlu.xlu_cfg_init(self._null, b"test"))
        try:
            yield config
        finally:
            self._xlu.xlu_cfg_destroy(config)

    def settings(self, data: bytes, names: list[str]) -> dict[str, bytes | list[bytes]] | None:
        """Return the named settings of a file (strings, and lists up to an item that is a list).

        None if the file is refused.
        """
        with self._config() as config:
            if self._xlu.xlu_cfg_readdata(config, data, len(data)):
                return None
            return {
                name: value
                for name in names
                if (value := self._setting(config, name.encode())) is not None
            }

    def _setting(self, config: c_void_p, name: bytes) -> bytes | list[bytes] | None:
        text, items = c_char_p(), c_void_p()
        if not self._xlu.xlu_cfg_get_string(config, name, byref(text), 1):
            return text.value
        count = c_int()
        if self._xlu.xlu_cfg_get_list(config, name, byref(items), byref(count), 1):
            return None
        found = []
        while item := self._xlu.xlu_cfg_get_listitem(items, len(found)):
            found.append(item)
            if len(found) == count.value:
                break
        return found

    def number(self, data: bytes, name: str) -> int | None:
        """Return a setting as a number; None if it is none."""
        value = ctypes.c_long()
        with self._config() as config:
            assert not self._xlu.xlu_cfg_readdata(config, data, len(data))
            failed = self._xlu.xlu_cfg_get_long(config, name.encode(), byref(value), 1)
        return None if failed else value.value

    def disk(self, spec: bytes) -> DeviceDisk | None:
        """Parse a disk specification; None if it is refused."""
        disk = DeviceDisk()
        with self._config() as config:
            specs = (c_char_p * 1)(spec)
            failed = self._xlu.xlu_disk_parse(config, 1, specs, byref(disk))
        return None if failed else disk


def load() -> Xlu | None:
    """Return the library, or None where it is not installed."""
    try:
        return Xlu()
    except OSError:
        return None
