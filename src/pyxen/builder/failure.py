"""How the builder refuses: always a UserError with the exit code of a failed `xl create`."""

from typing import Final

from pyxen.errors import UserError

CREATE_FAILED: Final = 3


def refuse(message: str, hint: str = "") -> UserError:
    """The error to raise for a kernel or ramdisk that cannot be used."""
    return UserError(message, hint, CREATE_FAILED)
