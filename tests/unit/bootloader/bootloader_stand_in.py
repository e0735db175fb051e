"""Volumes that are dictionaries, for the grammars."""

from __future__ import annotations

from collections.abc import Sequence


class StandInDisks:
    """See entry.Disks. Volume 0 is partition 1 of the disk, and so on."""

    def __init__(self, *volumes: dict[str, str], uuids: Sequence[str] = ()) -> None:
        self.volumes = volumes
        self.uuids = list(uuids)

    def device(self, name: str) -> int | None:
        digits = name.rpartition(",")[2].removeprefix("gpt").removeprefix("msdos")
        number = int(digits) - 1 if digits.isdigit() else -1
        return number if 0 <= number < len(self.volumes) else None

    def search(self, kind: str, value: str) -> int | None:
        if kind == "uuid":
            return self.uuids.index(value) if value in self.uuids else None
        return next((i for i, files in enumerate(self.volumes) if value in files), None)

    def read(self, volume: int, path: str) -> str | None:
        return self.volumes[volume].get(path)

    def names(self, volume: int, path: str) -> Sequence[str]:
        inside = path.rstrip("/") + "/"
        below = [file[len(inside) :] for file in self.volumes[volume] if file.startswith(inside)]
        return sorted({name.partition("/")[0] for name in below})
