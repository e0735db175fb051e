"""Look through all file systems of an image for a boot loader's configuration, and for files."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from pyxen.bootloader import bls
from pyxen.bootloader.blocks import Blocks, Window
from pyxen.bootloader.entry import Disks, File, Menu
from pyxen.bootloader.extlinux import read_extlinux
from pyxen.bootloader.failure import ImageError
from pyxen.bootloader.filesystems import FileSystem, Node, open_filesystem
from pyxen.bootloader.grub2 import read_grub2
from pyxen.bootloader.grub_legacy import read_grub_legacy
from pyxen.bootloader.lvm import logical_volumes
from pyxen.bootloader.partitions import Partition, partitions

CONFIG_BYTES_MAX = 1 << 20
VOLUMES_MAX = 128
NOTES_MAX = 60

Reader = Callable[[Disks, int, str, str], Menu]

CONFIGS: tuple[tuple[str, Reader], ...] = (
    *((path, read_grub2) for path in ("/boot/grub/grub.cfg", "/grub/grub.cfg")),
    *((path, read_grub2) for path in ("/boot/grub2/grub.cfg", "/grub2/grub.cfg")),
    ("/boot/isolinux/isolinux.cfg", read_extlinux),
    ("/isolinux/isolinux.cfg", read_extlinux),
    ("/boot/extlinux/extlinux.conf", read_extlinux),
    ("/boot/extlinux.conf", read_extlinux),
    ("/extlinux/extlinux.conf", read_extlinux),
    ("/extlinux.conf", read_extlinux),
    ("/boot/syslinux/syslinux.cfg", read_extlinux),
    ("/syslinux/syslinux.cfg", read_extlinux),
    ("/syslinux.cfg", read_extlinux),
    *((path, read_grub_legacy) for path in ("/boot/grub/menu.lst", "/boot/grub/grub.conf")),
    *((path, read_grub_legacy) for path in ("/grub/menu.lst", "/grub/grub.conf")),
)
"""Where configurations are, in the order of pygrub's search."""
LOADER_DIRECTORIES = ("/boot/loader", "/loader")

_DEVICE = re.compile(r"(?:[a-z]+[0-9]+|/?dev/[a-z]+|xen/[a-z]+)?,?(?:gpt|msdos)?(\d{1,3})")


@dataclass(frozen=True)
class Volume:
    """A file system, and what people call its place."""

    name: str
    number: int
    filesystem: FileSystem


class Image:
    """The volumes of an image, as configurations ask for them: see entry.Disks."""

    def __init__(self, disk: Blocks, offset: int | None = None) -> None:
        self.volumes: list[Volume] = []
        self.notes: list[str] = []
        if offset is not None:
            places = [Partition(0, "", Window(disk, offset, disk.size))]
        else:
            places = partitions(disk)
        for place in places:
            self._add(place.name, place.number, place.blocks)

    def menu(self) -> Menu:
        """The first configuration that starts a kernel. ImageError naming all that was tried."""
        for index, volume in enumerate(self.volumes):
            for menu in self._menus(index, volume):
                if any(entry.kernel for entry in menu.entries):
                    menu.notes = [*self.notes, *menu.notes]
                    return menu
                why = next((entry.note for entry in menu.entries if entry.note), "it is empty")
                self._note(f"{volume.name}: {menu.source} starts no kernel: {why}")
        if not self.volumes:
            self._note("there is no file system that can be read")
        raise ImageError("\n".join(["there is no boot configuration", *self.notes]))

    def locate(self, file: File) -> tuple[Volume, Node]:
        """A file where its configuration says, or else where it is. ImageError if it is nowhere.

        A configuration may mean another file system by its paths than is found: /boot may be a
        partition of its own, and a root may be named by something that is not on this disk.
        """
        first = self.volumes[file.volume : file.volume + 1] if file.volume >= 0 else []
        others = [volume for volume in self.volumes if volume not in first]
        for volume in (*first, *others):
            for path in _variants(file.path):
                node = _quietly(volume.filesystem.file, path)
                if node is not None:
                    return volume, node
        looked = ", ".join(volume.name for volume in (*first, *others)) or "no file system"
        raise ImageError(f"there is no file {file.path} in the image (looked in: {looked})")

    def device(self, name: str) -> int | None:
        """See entry.Disks."""
        for index, volume in enumerate(self.volumes):
            if name.startswith("lvm/") and volume.name == name:
                return index
        match = _DEVICE.fullmatch(name) if "," in name else None
        number = int(match[1]) if match else 0
        for index, volume in enumerate(self.volumes):
            if volume.number == number:
                return index
        return None

    def search(self, kind: str, value: str) -> int | None:
        """See entry.Disks."""
        for index, volume in enumerate(self.volumes):
            filesystem = volume.filesystem
            match kind:
                case "uuid":
                    there = filesystem.uuid == value.lower()
                case "label":
                    there = filesystem.label == value
                case _:
                    there = _quietly(filesystem.find, value) is not None
            if there:
                return index
        return None

    def read(self, volume: int, path: str) -> str | None:
        """See entry.Disks."""
        if not 0 <= volume < len(self.volumes):
            return None
        try:
            data = self.volumes[volume].filesystem.read(path, CONFIG_BYTES_MAX)
        except (ImageError, OSError):
            return None
        return data.decode(errors="replace")

    def names(self, volume: int, path: str) -> list[str]:
        """See entry.Disks."""
        if not 0 <= volume < len(self.volumes):
            return []
        try:
            return self.volumes[volume].filesystem.names(path)
        except (ImageError, OSError):
            return []

    def _menus(self, index: int, volume: Volume) -> Iterator[Menu]:
        found = False
        for path, reader in CONFIGS:
            text = self.read(index, path)
            if text is None:
                continue
            found = True
            try:
                yield reader(self, index, path, text)
            except (ImageError, RecursionError) as error:
                self._note(f"{volume.name}: {path}: {error}")
        for directory in LOADER_DIRECTORIES:
            menu = bls.read_loader(self, index, directory)
            if menu is not None:
                found = True
                yield menu
        if not found:
            kind = volume.filesystem.kind
            self._note(
                f"{volume.name}, {kind}: no grub.cfg, extlinux.conf, menu.lst or loader/entries"
            )

    def _add(self, name: str, number: int, blocks: Blocks) -> None:
        try:
            filesystem = open_filesystem(blocks)
            parts = [] if filesystem else logical_volumes(blocks)
        except (ImageError, OSError) as error:
            self._note(f"{name}: {error}")
            return
        if filesystem is not None and len(self.volumes) < VOLUMES_MAX:
            self.volumes.append(Volume(name, number, filesystem))
        for part, of_part in parts:
            self._add(f"lvm/{part}", -1, of_part)
        if filesystem is None and not parts:
            self._note(f"{name}: no file system that is known")

    def _note(self, text: str) -> None:
        if len(self.notes) < NOTES_MAX:
            self.notes.append(text[:300])


def read_plain(path: str, text: str) -> Menu:
    """The menu of a configuration that is not in an image (pygrub's --isconfig)."""
    image = Image(Window(_Nothing(), 0, 0))
    if re.search(r"^\s*(menuentry|submenu|blscfg)\b", text, re.MULTILINE):
        return read_grub2(image, -1, path, text)
    if re.search(r"^\s*title\b", text, re.MULTILINE):
        return read_grub_legacy(image, -1, path, text)
    return read_extlinux(image, -1, path, text)


class _Nothing:
    size = 0

    def read_at(self, offset: int, length: int) -> bytes:
        return b""


def _variants(path: str) -> list[str]:
    path = posixpath.normpath(f"/{path}").replace("//", "/")
    return [path, path.removeprefix("/boot") if path.startswith("/boot/") else f"/boot{path}"]


def _quietly(find: Callable[[str], Node | None], path: str) -> Node | None:
    try:
        return find(path)
    except (ImageError, OSError):
        return None
