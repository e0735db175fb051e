"""The confined process that reads an image: `python -m pyxen.bootloader.worker KIND FD SIZE`.

KIND is raw (FD is a file or block device), or nbd (FD is a socket past its handshake, SIZE the
export's). Requests come as JSON lines on stdin, answers go to stdout as frames.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

from pyxen.bootloader import frames
from pyxen.bootloader.blocks import Blocks, NbdSocket, RawFile
from pyxen.bootloader.entry import Entry, File, Menu
from pyxen.bootloader.failure import ImageError
from pyxen.bootloader.filesystems import chunks
from pyxen.bootloader.finder import CONFIG_BYTES_MAX, Image, read_plain
from pyxen.bootloader.sandbox import confine

TEXT_CHARS_MAX = 16000
TITLE_CHARS_MAX = 1000
FILES_MAX = 64


class Worker:
    """Answers requests about one image."""

    def __init__(self, blocks: Blocks) -> None:
        self._blocks = blocks
        self._image: Image | None = None

    def serve(self) -> None:
        """Until stdin ends."""
        for line in sys.stdin.buffer:
            try:
                self._answer(json.loads(line))
            except (ImageError, OSError) as error:
                _send(frames.ERROR, _clean(str(error)).encode())
            except MemoryError:
                self._image = None
                _send(frames.ERROR, b"reading the image takes more memory than is allowed")
            except RecursionError:
                _send(frames.ERROR, b"the image nests its content too deeply")
            except Exception as error:
                text = f"the image cannot be read: {type(error).__name__}: {error}"
                _send(frames.ERROR, _clean(text).encode())

    def _answer(self, request: dict[str, Any]) -> None:
        match request["op"]:
            case "menu":
                _send(frames.JSON, json.dumps(self._menu(request)).encode())
            case "look":
                volume, node = self._open(request).locate(File(request["volume"], request["path"]))
                _send(frames.JSON, json.dumps({"where": volume.name, "size": node.size}).encode())
            case "read":
                _, node = self._open(request).locate(File(request["volume"], request["path"]))
                for data in chunks(node):
                    _send(frames.DATA, data)
                _send(frames.DATA, b"")

    def _open(self, request: dict[str, Any]) -> Image:
        if self._image is None:
            self._image = Image(self._blocks, request.get("offset"))
        return self._image

    def _menu(self, request: dict[str, Any]) -> dict[str, Any]:
        if request.get("config"):
            text = self._blocks.read_at(0, CONFIG_BYTES_MAX).decode(errors="replace")
            menu = read_plain("", text)
        else:
            menu = self._open(request).menu()
        return menu_json(menu)


def menu_json(menu: Menu) -> dict[str, Any]:
    """What can be sent of a menu. The reader checks it."""
    default = menu.find(menu.default)
    fallback = [place for word in menu.fallback if (place := menu.find(word)) is not None]
    if default is None:
        menu.notes.append(f"the default entry {menu.default[:80]!r} is not there")
    return {
        "source": menu.source,
        "volume": menu.volume,
        "default": default or 0,
        "fallback": fallback,
        "timeout_s": menu.timeout_s,
        "notes": [_clean(note) for note in menu.notes],
        "entries": [_entry_json(entry) for entry in menu.entries],
    }


def _entry_json(entry: Entry) -> dict[str, Any]:
    kernel, note = entry.kernel, entry.note
    longest = max(
        map(len, (entry.args, *(f.path for f in (kernel, *entry.ramdisks) if f))), default=0
    )
    if longest > TEXT_CHARS_MAX or len(entry.ramdisks) > FILES_MAX:
        kernel, note = None, "its command is too long"
    return {
        "title": _clean(entry.title)[:TITLE_CHARS_MAX],
        "kernel": [kernel.volume, kernel.path] if kernel else None,
        "args": "".join(" " if ord(c) < 32 else c for c in entry.args) if kernel else "",
        "ramdisks": [[file.volume, file.path] for file in entry.ramdisks] if kernel else [],
        "names": sorted(name for name in entry.names if len(name) <= TITLE_CHARS_MAX)[:200],
        "numbers": entry.numbers,
        "note": _clean(note),
    }


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else "?" for c in text)[:16000]


def _send(kind: bytes, payload: bytes) -> None:
    data = frames.HEADER.pack(kind, len(payload)) + payload
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]


def _import_all() -> None:
    """What is imported when it is used cannot be found any more by then."""
    import encodings.ascii
    import encodings.cp437
    import encodings.idna
    import encodings.latin_1
    import encodings.utf_16_be
    import encodings.utf_16_le

    import pycdlib
    import pycdlib.pycdlibio
    import pyfsext
    import pyfsfat
    import pyfsxfs
    import pyvslvm
    import zstandard

    import pyxen.bootloader.btrfs

    time.strptime("2000", "%Y")  # it imports a part of itself when it is used
    del encodings, pycdlib, pyfsext, pyfsfat, pyfsxfs, pyvslvm, zstandard, pyxen


def main(arguments: list[str]) -> int:
    """Serve one image."""
    kind, fd, size = arguments[0], int(arguments[1]), int(arguments[2])
    _import_all()
    confine()
    if kind == "nbd":
        blocks: Blocks = NbdSocket(socket.socket(fileno=fd), size)
    else:
        blocks = RawFile(fd)
    Worker(blocks).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
