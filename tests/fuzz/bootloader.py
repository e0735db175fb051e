"""Damaged images and configurations against the confined reader of boot loaders.

Each round takes an image that can be booted, changes bytes where a file system has its structure,
or mutates the configuration in it, and lets pygrub look. It must find a kernel or say why not; the
reader must not outlive its limits, and nothing may be left behind.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from pyxen.bootloader.pygrub import find, parse_options
from pyxen.errors import UserError

from .campaign import Failed, numbers

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "bootloader"))
import bootloader_images as images

ROUND_SECONDS = 200.0
"""The reader's own limit and some more; it is a bound, not a measurement."""
STRUCTURE_BYTES = 256 << 10
CONFIGS = {
    "boot/grub/grub.cfg": images.GRUB
    + "if [ -f $prefix/x -o ! a = b ]; then set a=1; else source /c; fi\n"
    "function f { for i in 1 2; do linux /k $i; done; }\nsubmenu s { menuentry t { f } }\n",
    "boot/extlinux.conf": "DEFAULT a\nTIMEOUT 30\nLABEL a\nLINUX vmlinuz\nINITRD initrd,early\n"
    "MENU INCLUDE x.conf\nAPPEND root=/dev/xvda1\n",
    "boot/grub/menu.lst": "default=0\ntimeout 3\ntitle a\nroot (hd0,0)\nkernel /xen.gz\n"
    "module /boot/vmlinuz x\nmodule /boot/initrd\n",
    "loader/entries/a-5.1.conf": "title a\nversion 5.1\nlinux /boot/vmlinuz\noptions $x ro\n",
}
PIECES = (
    *("{", "}", "if ", "fi", "then", "while true; do ", "done", "$", "${", "'", '"', "\\", ";"),
    *("menuentry x {", "function f {", "f;", "source /boot/grub/grub.cfg", "blscfg", "\0", "\n"),
    *("$a$a$a", "set a=$a$a", "[ ", "( ", "! ", "title ", "LABEL ", "INCLUDE extlinux.conf", "---"),
)


@dataclass
class Totals:
    """What was done."""

    operations: int = 0
    domains: int = 0
    crashes: int = 0
    reasons: Counter[str] = field(default_factory=Counter)


class BootloaderCampaign:
    """See the module. Rounds are numbered; one can be run again by its number."""

    def __init__(self, seed: int) -> None:
        images.check_tools()
        self._seed = seed
        self._scratch = tempfile.TemporaryDirectory(prefix="fuzz-boot-")
        self._at = Path(self._scratch.name)
        self._good: dict[str, Path] = {}
        tree = images.make_tree(self._at / "tree", random.Random(1).randbytes(200_000))
        for kind, make in images.FILE_SYSTEMS.items():
            plain = images.make_tree(self._at / f"fat-{kind}", b"kernel", links=False)
            self._good[kind] = self._at / f"{kind}.img"
            make(self._good[kind], plain if kind == "fat" else tree)
        parts = [self._good["ext2"], self._good["fat"]]
        for label in ("dos", "gpt"):
            self._good[label] = self._at / f"{label}.img"
            images.partitioned(self._good[label], label, parts, extended=label == "dos")

    def run(self, seconds: float, first: int = 0, only: bool = False) -> Totals:
        """Rounds from number `first` on. Raises Failed."""
        totals = Totals()
        for number in numbers(seconds, first, only):
            totals.domains += 1
            totals.operations += 1
            try:
                why = self._round(number)
            except Exception as error:
                again = f'make fuzz FUZZ="--campaign bootloader --seed {self._seed}'
                raise Failed(
                    f'{type(error).__name__}: {error}\n{again} --domain {number}"'
                ) from error
            totals.reasons[why] += 1
            totals.crashes += "the process that reads the image failed" in why
        return totals

    def close(self) -> None:
        """Remove the images."""
        self._scratch.cleanup()

    def _round(self, number: int) -> str:
        rng = random.Random(f"{self._seed}/{number}")
        image = self._at / "mutant"
        if rng.random() < 0.4:
            self._mutate_config(rng, image)
        else:
            self._mutate_image(rng, image)
        out = self._at / "out"
        out.mkdir()
        started = time.monotonic()
        try:
            found = find(parse_options(["-q", f"--output-directory={out}", str(image)]))
            why = "booted"
            for path in (found.kernel, found.ramdisk):
                if path:
                    os.unlink(path)
        except UserError as error:
            assert error.message and error.message.isprintable(), repr(error.message)
            why = error.message.partition(":")[0][:60]
            if "failed" in why:
                why = error.message[:100]
        assert time.monotonic() - started < ROUND_SECONDS, "the reader went on for too long"
        assert not list(out.iterdir()), "files were left behind"
        out.rmdir()
        used = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10
        assert used <= 1100, f"a reader used {used} MiB"
        image.unlink()
        return why

    def _mutate_config(self, rng: random.Random, image: Path) -> None:
        tree = Path(tempfile.mkdtemp(dir=self._at))
        for path, text in CONFIGS.items():
            if rng.random() < 0.5:
                (tree / path).parent.mkdir(parents=True, exist_ok=True)
                (tree / path).write_bytes(_mutated(rng, text).encode("utf-8", "surrogatepass"))
        (tree / "boot").mkdir(exist_ok=True)
        (tree / "boot" / "vmlinuz").write_bytes(b"kernel")
        images.run("mke2fs", "-q", "-t", "ext2", "-d", tree, image, "2M")

    def _mutate_image(self, rng: random.Random, image: Path) -> None:
        kind = rng.choice(sorted(self._good))
        data = bytearray(self._good[kind].read_bytes())
        structure = [at for at in range(0, len(data), 4096) if any(data[at : at + 64])]
        for _ in range(rng.choice((1, 3, 20, 200))):
            near = rng.choice(structure) if rng.random() < 0.7 else 0
            at = (near + rng.randrange(4096 if near else STRUCTURE_BYTES)) % len(data)
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice((0, 1, (1 << 8 * width) - 1, rng.getrandbits(8 * width)))
            data[at : at + width] = value.to_bytes(width, rng.choice(("little", "big")))
        if rng.random() < 0.1:
            del data[rng.randrange(len(data)) :]
        with image.open("wb") as file:
            for at in range(0, len(data), 1 << 16):
                block = data[at : at + (1 << 16)]
                if any(block):
                    file.seek(at)
                    file.write(block)
            file.truncate(len(data))


def _mutated(rng: random.Random, text: str) -> str:
    for _ in range(rng.randrange(1, 12)):
        at = rng.randrange(len(text) + 1)
        match rng.randrange(4):
            case 0:
                text = text[:at] + rng.choice(PIECES) * rng.choice((1, 1, 2, 50)) + text[at:]
            case 1:
                text = text[:at] + text[at + rng.randrange(20) :]
            case 2:
                text = text[:at] + text[rng.randrange(len(text) + 1) :]
            case _:
                text = text[:at] + chr(rng.choice((0, 9, 27, 0x80, 0x10FFFF))) + text[at + 1 :]
    return text[: 1 << 18]
