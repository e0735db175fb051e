"""The pseudo terminal that other programs may open: xenstore's console/tty."""

from __future__ import annotations

import os
import tty


class Pty:
    """A pty in raw mode. The slave is held open, so that no reader's leaving ends the master."""

    def __init__(self) -> None:
        self.master, self._slave = os.openpty()
        tty.setraw(self._slave)
        os.set_blocking(self.master, False)
        self.name = os.ttyname(self._slave)

    def write(self, data: bytes) -> None:
        """Show output. What nobody reads is dropped when the terminal's buffer is full."""
        try:
            os.write(self.master, data)
        except (BlockingIOError, OSError):
            return

    def read(self) -> bytes:
        """What was typed, b"" if nothing."""
        try:
            return os.read(self.master, 1024)
        except (BlockingIOError, OSError):
            return b""

    def close(self) -> None:
        """Give the terminal back."""
        os.close(self.master)
        os.close(self._slave)
