"""Entries of the Boot Loader Specification: loader/entries/*.conf, as Fedora and systemd-boot use.

Source: the UAPI group's Boot Loader Specification, type 1 entries; GRUB's blscfg command.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from pyxen.bootloader.entry import Disks, Entry, File, Menu
from pyxen.bootloader.version import newest_first

SNIPPETS_MAX = 200
_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def read_entries(
    disks: Disks, volume: int, directory: str, value: Callable[[str], str]
) -> list[Entry]:
    """The entries of a directory, newest first. `value` gives variables that options may name."""
    directory = directory.rstrip("/")
    found: list[tuple[tuple[Any, ...], Entry]] = []
    for name in [n for n in disks.names(volume, directory) if n.endswith(".conf")][:SNIPPETS_MAX]:
        text = disks.read(volume, f"{directory}/{name}")
        if text is not None:
            identifier = name.removesuffix(".conf")
            fields = _fields(text)
            found.append((_order(identifier, fields), _entry(volume, identifier, fields, value)))
    found.sort(key=lambda pair: pair[0])
    return [entry for _, entry in found]


def read_loader(disks: Disks, volume: int, directory: str) -> Menu | None:
    """The menu of systemd-boot: loader.conf and the entries beside it; None if there are none."""
    entries = read_entries(disks, volume, f"{directory}/entries", lambda name: "")
    if not entries:
        return None
    menu = Menu(f"{directory}/entries", volume, entries)
    for number, entry in enumerate(entries):
        entry.numbers = str(number)
    settings = _fields(disks.read(volume, f"{directory}/loader.conf") or "")
    menu.default = _default(settings.get("default", [""])[0], entries)
    timeout = settings.get("timeout", [""])[0]
    if timeout.isdigit() and len(timeout) < 6:
        menu.timeout_s = float(timeout)
    elif timeout in ("menu-force", "menu-hidden"):
        menu.timeout_s = None if timeout == "menu-force" else 0.0
    return menu


def _default(pattern: str, entries: list[Entry]) -> str:
    """The first entry that a pattern of loader.conf matches (`*` and `?` only)."""
    pattern = pattern.removesuffix(".conf")
    regex = "".join({"*": ".*", "?": "."}.get(c) or re.escape(c) for c in pattern[:256])
    regex = re.sub(r"(\.\*)+", ".*", regex)
    for entry in entries:
        if pattern.count("*") <= 2 and any(re.fullmatch(regex, name) for name in entry.names):
            return entry.numbers
    return "0"


def _fields(text: str) -> dict[str, list[str]]:
    fields: dict[str, list[str]] = {}
    for line in text.splitlines():
        words = line.strip().split(None, 1)
        if len(words) == 2 and not words[0].startswith("#"):
            fields.setdefault(words[0], []).append(words[1].strip())
    return fields


def _order(identifier: str, fields: dict[str, list[str]]) -> tuple[Any, ...]:
    """With sort-key first, by it; then the newest version, then the file's name, backwards."""
    sort_key = fields.get("sort-key", [""])[0]
    version = fields.get("version", [""])[0] if sort_key else ""
    return (not sort_key, sort_key, newest_first(version), newest_first(identifier))


def _entry(
    volume: int, identifier: str, fields: dict[str, list[str]], value: Callable[[str], str]
) -> Entry:
    title = fields.get("title", [identifier])[0]
    entry = Entry(title, names=frozenset({title, identifier, f"{identifier}.conf"}))

    def expanded(text: str) -> str:
        return _VARIABLE.sub(lambda match: value(match[1] or match[2]), text)

    if "linux" not in fields:
        kinds = [kind for kind in ("efi", "uki", "uki-url") if kind in fields]
        entry.note = f"it starts an EFI program ({kinds[0]})" if kinds else "it names no kernel"
        return entry
    entry.kernel = File(volume, _rooted(expanded(fields["linux"][0])))
    entry.args = " ".join(expanded(text) for text in fields.get("options", [])).strip()
    entry.ramdisks = [
        File(volume, _rooted(path))
        for text in fields.get("initrd", [])
        for path in expanded(text).split()
    ]
    return entry


def _rooted(path: str) -> str:
    return path if path.startswith("/") else f"/{path}"
