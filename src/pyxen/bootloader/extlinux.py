"""extlinux.conf, syslinux.cfg, isolinux.cfg.

Source: the Syslinux wiki's SYSLINUX and Menu pages.
"""

from __future__ import annotations

import posixpath

from pyxen.bootloader.entry import Disks, Entry, File, Menu

ENTRIES_MAX = 500
INCLUDES_MAX = 20
LINES_MAX = 20_000
TENTHS = 10.0


def read_extlinux(disks: Disks, volume: int, path: str, text: str) -> Menu:
    """The menu of an extlinux.conf."""
    return _Extlinux(disks, volume, path).run(text)


class _Extlinux:
    def __init__(self, disks: Disks, volume: int, path: str) -> None:
        self._disks = disks
        self._volume = volume
        self._directory = posixpath.dirname(path)
        self._menu = Menu(path, volume, timeout_s=None)
        self._label: _Label | None = None
        self._append = ""
        self._default = ""
        self._includes = 0
        self._lines = 0
        self._labels: list[_Label] = []

    def run(self, text: str) -> Menu:
        self._read(text)
        menu = self._menu
        for number, label in enumerate(self._labels):
            entry = self._entry(label)
            entry.numbers = str(number)
            menu.entries.append(entry)
            if label.default and not self._default:
                self._default = label.name
        menu.default = self._default_place()
        return menu

    def _default_place(self) -> str:
        """DEFAULT names a label; syslinux takes the first word for it."""
        word = self._default.split()[0] if self._default.split() else ""
        for number, label in enumerate(self._labels):
            if self._default in (label.name, label.title) or word == label.name:
                return str(number)
        return "0"

    def _read(self, text: str) -> None:
        for line in text.splitlines():
            self._lines += 1
            words = line.strip().split(None, 1)
            if words and not words[0].startswith("#") and self._lines <= LINES_MAX:
                self._line(words[0].lower(), words[1].strip() if len(words) > 1 else "")

    def _line(self, word: str, value: str) -> None:
        label = self._label
        match word:
            case "label" if len(self._labels) < ENTRIES_MAX:
                self._label = _Label(value, self._append)
                self._labels.append(self._label)
            case "default":
                self._default = value
            case "timeout" if value.isdigit() and len(value) < 8:
                # 0 waits for ever.
                self._menu.timeout_s = int(value) / TENTHS if int(value) else None
            case "include":
                self._include(value)
            case "menu":
                self._menu_line(value)
            case "append" if label is None:
                self._append = value
            case "append" if label is not None:
                label.append = "" if value == "-" else value
            case "kernel" | "linux" if label is not None:
                name, _, args = value.partition(" ")
                label.kernel, label.kernel_args = name, args.strip()
            case "initrd" if label is not None:
                label.initrds = [path.strip() for path in value.split(",")]
            case "com32" | "localboot" | "boot" | "bss" | "pxe" if label is not None:
                label.other = word

    def _menu_line(self, value: str) -> None:
        words = value.split(None, 1)
        match words[0].lower() if words else "":
            case "label" if self._label is not None and len(words) > 1:
                self._label.title = words[1].replace("^", "").strip()
            case "default" if self._label is not None:
                self._label.default = True
            case "include" if len(words) > 1:
                self._include(words[1].split()[0])

    def _include(self, name: str) -> None:
        self._includes += 1
        text = self._disks.read(self._volume, self._path(name))
        if self._includes <= INCLUDES_MAX and text is not None:
            self._read(text)

    def _entry(self, label: _Label) -> Entry:
        title = label.title or label.name
        entry = Entry(title, names=frozenset({title, label.name} - {""}))
        kernel, args, initrds = label.kernel, label.append, label.initrds
        if label.kernel_args:
            args = f"{label.kernel_args} {args}".strip()
        if posixpath.basename(kernel) == "mboot.c32":
            kernel, args, initrds = _modules(label.append)
        words = []
        for word in args.split():
            if word.lower().startswith("initrd="):
                initrds = word[7:].split(",")
            else:
                words.append(word)
        if not kernel or kernel.endswith(".c32"):
            entry.note = f"it starts {label.other or kernel or 'nothing'}"
            return entry
        entry.kernel = File(self._volume, self._path(kernel))
        entry.args = " ".join(words)
        entry.ramdisks = [File(self._volume, self._path(path)) for path in initrds if path]
        return entry

    def _path(self, path: str) -> str:
        return posixpath.normpath(posixpath.join(self._directory or "/", path))


class _Label:
    def __init__(self, name: str, append: str) -> None:
        self.name = name
        self.append = append
        self.title = ""
        self.kernel = ""
        self.kernel_args = ""
        self.initrds: list[str] = []
        self.default = False
        self.other = ""


def _modules(append: str) -> tuple[str, str, list[str]]:
    """(kernel, its arguments, ramdisks) of `xen.gz … --- vmlinuz … --- initrd`.

    As in pygrub, two pieces are a kernel and its ramdisk, unless the first one is Xen.
    """
    pieces = [piece.strip() for piece in append.split("---")]
    if len(pieces) > 2 or posixpath.basename(pieces[0].partition(" ")[0]).startswith("xen"):
        del pieces[0]
    if not pieces:
        return "", "", []
    kernel, _, args = pieces[0].partition(" ")
    return kernel, args.strip(), [piece.split()[0] for piece in pieces[1:2] if piece]
