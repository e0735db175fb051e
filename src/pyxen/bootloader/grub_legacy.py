"""GRUB legacy's menu.lst and grub.conf.

Source: GNU GRUB manual 0.97, chapters 3.3, 5, 13.
"""

from __future__ import annotations

import re

from pyxen.bootloader.entry import Disks, Entry, File, Menu

ENTRIES_MAX = 500
_PART = re.compile(r"\(?[a-z]+[0-9]+,(\d{1,3})(?:,[a-z])?\)?")
_WORD = re.compile(r"\s*([A-Za-z]+)(?:\s*=\s*|\s+|$)(.*)")


def read_grub_legacy(disks: Disks, volume: int, path: str, text: str) -> Menu:
    """The menu of a menu.lst."""
    menu = Menu(path, volume, timeout_s=None)
    bodies: list[list[tuple[str, str]]] = []
    for line in text.splitlines():
        match = _WORD.match(line)
        if not match:
            continue
        word, rest = match[1].lower(), match[2].strip()
        if word == "title" and len(menu.entries) < ENTRIES_MAX:
            number = str(len(menu.entries))
            menu.entries.append(Entry(rest, names=frozenset({rest}), numbers=number))
            bodies.append([])
        elif bodies:
            bodies[-1].append((word, rest))
        else:
            _setting(menu, word, rest)
    if menu.default == "saved":
        menu.default = _saved(disks.read(volume, f"{path.rpartition('/')[0]}/default"))
    for entry, body in zip(menu.entries, bodies, strict=True):
        _entry(disks, volume, entry, body)
    return menu


def _setting(menu: Menu, word: str, value: str) -> None:
    if word == "default":
        menu.default = value or "0"
    elif word == "fallback":
        menu.fallback = value.split()
    elif word == "timeout" and value.isdigit() and len(value) < 6:
        menu.timeout_s = float(value)


def _saved(text: str | None) -> str:
    first = (text or "").split("\n", 1)[0].strip("\0 ")
    return first if first.isdigit() and len(first) < 4 else "0"


def _entry(disks: Disks, volume: int, entry: Entry, body: list[tuple[str, str]]) -> None:
    """Read what an entry loads. With Xen as its kernel, Linux is the first module."""
    root = volume
    modules: list[tuple[File, str]] = []
    for word, value in body:
        if word in ("root", "rootnoverify"):
            root = _device(disks, value, root)
        elif word == "uuid":
            found = disks.search("uuid", value)
            root = root if found is None else found
        elif word == "kernel":
            options = re.compile(r"(--(type=\S+|no-mem-option)\s+)+")
            name, _, args = options.sub("", f"{value} ", 1).strip().partition(" ")
            entry.kernel, entry.args = _file(disks, name, root), args.strip()
        elif word in ("initrd", "modulenounzip", "module"):
            name, _, args = value.partition(" ")
            modules.append((_file(disks, name, root), args.strip()))
            if word == "initrd":
                entry.ramdisks = [file for file, _ in modules[-1:]]
                modules.pop()
        elif word == "chainloader":
            entry.note = "it starts another boot loader"
    if modules and entry.kernel is not None:
        entry.kernel, entry.args = modules[0]
        entry.ramdisks = [file for file, _ in modules[1:2]]
    if entry.kernel is None and not entry.note:
        entry.note = "it loads no kernel"


def _file(disks: Disks, path: str, root: int) -> File:
    if path.startswith("("):
        device, _, path = path.partition(")")
        return File(_device(disks, device, root), path)
    return File(root, path if path.startswith("/") else f"/{path}")


def _device(disks: Disks, text: str, otherwise: int) -> int:
    """GRUB legacy counts partitions from 0."""
    match = _PART.match(text.strip())
    found = disks.device(f"hd0,{int(match[1]) + 1}") if match else disks.device("hd0")
    return otherwise if found is None else found
