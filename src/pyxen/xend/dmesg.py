"""The text that `xl dmesg` prints: what the hypervisor side had to say, oldest first."""

from __future__ import annotations

from pathlib import Path

KEEP_BYTES = 16384
"""Size of Xen's default console ring (conring_size)."""


class Dmesg:
    """A bounded log in a file, so that it outlives xend."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def say(self, line: str) -> None:
        """Append one line; when the file is twice its limit the older half goes."""
        clean = "".join(c if c.isprintable() else "?" for c in line)
        with self._path.open("a") as log:
            log.write(f"(XEN) {clean}\n")
            too_long = log.tell() > 2 * KEEP_BYTES
        if too_long:
            kept = self._path.read_bytes()[-KEEP_BYTES:]
            self._path.write_bytes(kept.partition(b"\n")[2])

    def read(self, *, clear: bool = False) -> str:
        """The whole text; `clear` empties it."""
        try:
            text = self._path.read_text(errors="replace")
        except FileNotFoundError:
            return ""
        if clear:
            self._path.write_bytes(b"")
        return text
