"""The xl.cfg of a guest that starts from its disk."""

from __future__ import annotations

from pathlib import Path
from typing import Final

_CONFIG: Final = """\
# Made by `pyxen image {kind}`. Start it with: xl create -c {config}
name = "{name}"
# The kernel is that of the disk: pygrub reads it from there.
bootloader = "pygrub"
disk = ["{image},{format},xvda,rw"]
memory = {memory}
vcpus = {vcpus}
on_poweroff = "destroy"
on_reboot = "restart"
on_crash = "destroy"
"""


def disk_config(
    kind: str, config: Path, image: Path, image_format: str, memory_mib: int, vcpus: int
) -> str:
    """The text of `config`, whose name without its suffix is the guest's."""
    return _CONFIG.format(
        kind=kind,
        config=config.name,
        name=config.stem,
        image=image.absolute(),
        format=image_format,
        memory=memory_mib,
        vcpus=vcpus,
    )
