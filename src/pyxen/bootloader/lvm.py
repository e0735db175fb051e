"""Logical volumes of a volume group that is on one physical volume, by libvslvm."""

from __future__ import annotations

from typing import Any

from pyxen.bootloader.blocks import Blocks, BlocksFile
from pyxen.bootloader.failure import ImageError

LABEL = b"LABELONE"
LABEL_SECTORS = 4
VOLUMES_MAX = 64


def logical_volumes(blocks: Blocks) -> list[tuple[str, Blocks]]:
    """(group-volume, its blocks) of each; nothing if this is no physical volume.

    Raises: ImageError if it is one that cannot be read, or only a part of its group.
    """
    head = blocks.read_at(0, 512 * LABEL_SECTORS)
    if not any(head[at : at + 8] == LABEL for at in range(0, len(head), 512)):
        return []
    import pyvslvm

    try:
        handle = pyvslvm.handle()
        file = BlocksFile(blocks)
        handle.open_file_object(file)
        handle.open_physical_volume_files_as_file_objects([file])
        group = handle.get_volume_group()
        return [
            (f"{group.name}-{volume.name}", _LogicalVolume(handle, group, volume))
            for volume in list(group.logical_volumes)[:VOLUMES_MAX]
        ]
    except OSError as error:
        raise ImageError(f"the LVM volume group cannot be read: {error}") from error


class _LogicalVolume:
    """See Blocks."""

    def __init__(self, handle: Any, group: Any, volume: Any) -> None:
        self._owners = (handle, group)  # they must live as long as the volume
        self._volume = volume
        self.size = int(volume.size)

    def read_at(self, offset: int, length: int) -> bytes:
        length = min(length, self.size - offset)
        if length <= 0:
            return b""
        try:
            return bytes(self._volume.read_buffer_at_offset(length, offset))
        except OSError as error:
            raise ImageError(f"a logical volume cannot be read at {offset}: {error}") from error
