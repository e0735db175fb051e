"""The choices of diskmodel.c, made once more: what each block of the disk has to hold."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

BLOCK: Final = 4096
WORKERS: Final = 4
_MAX_BLOCKS: Final = 64
_SECTORS: Final = 8
_WORDS: Final = 64
_U64: Final = (1 << 64) - 1


class Random:
    """splitmix64."""

    def __init__(self, state: int) -> None:
        self._state = state & _U64

    def next(self) -> int:
        """The next number of 64 bits."""
        self._state = z = (self._state + 0x9E3779B97F4A7C15) & _U64
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _U64
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _U64
        return z ^ (z >> 31)


def content(block: int, generation: int) -> bytes:
    """The bytes of a block."""
    if not generation:
        return bytes(BLOCK)
    seeds = ((block << 40) + (generation << 8) + sector for sector in range(_SECTORS))
    return b"".join(struct.pack("<Q", Random(seed).next()) * _WORDS for seed in seeds)


class DiskModel:
    """Which generation every block has."""

    def __init__(self, blocks: int) -> None:
        self._generations = [0] * blocks

    def run(self, seed: int, operations: int) -> None:
        """What `diskmodel DEVICE STATE SEED OPERATIONS` does."""
        part = len(self._generations) // WORKERS
        for worker in range(WORKERS):
            random = Random(seed * WORKERS + worker)
            for n in range(operations):
                self._operation(random, worker * part, part, seed * operations + n + 1)

    def _operation(self, random: Random, first: int, blocks: int, generation: int) -> None:
        kind = random.next() % 100
        count = 1 + random.next() % _MAX_BLOCKS
        block = first + random.next() % (blocks - count + 1)
        if kind < 50:
            self._generations[block : block + count] = [generation] * count
        elif kind >= 93:
            self._generations[block : block + count] = [0] * count

    def differences(self, image: Path) -> list[int]:
        """Blocks of a raw image that do not hold what they have to."""
        with image.open("rb") as file:
            return [
                block
                for block, generation in enumerate(self._generations)
                if file.read(BLOCK) != content(block, generation)
            ]
