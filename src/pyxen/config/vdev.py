"""Virtual device names of disks, and the numbers that xenstore and the guest know them by.

    202 << 8 | disk << 4 | partition      xvd*, d*p*: disks and partitions 0 to 15
    1 << 28  | disk << 8 | partition      the same beyond: disks to 2^20 - 1, partitions to 255
    8 << 8   | disk << 4 | partition      sd*: disks and partitions 0 to 15
    3 << 8   | disk << 6 | partition      hd*: disks 0 and 1, partitions 0 to 63
    22 << 8  | (disk - 2) << 6 | partition        disks 2 and 3

Source: xen-vbd-interface(7).
"""

import re

from pyxen.config.number import whole
from pyxen.errors import UserError

EXIT_CODE = 3
INT_MAX = (1 << 31) - 1

_NAMED = re.compile("(xvd|hd|sd)([a-z]{1,6})([1-9][0-9]{0,2})?")
_NUMBERED = re.compile("d([0-9]{1,7})(?:p([0-9]{1,3}))?")
_LIMITS = {"xvd": (1 << 20, 256), "sd": (16, 16), "hd": (4, 64)}
"""How many disks, and partitions of each, a kind of name has."""


def vdev_number(vdev: str) -> int:
    """Return the number of a virtual device: of xvda it is 51712.

    Raises: UserError (exit code 3, as of a domain that cannot be created).
    """
    number = whole(vdev)
    if number is not None and 0 <= number <= INT_MAX:
        return number
    if match := _NUMBERED.fullmatch(vdev):
        kind, disk, partition = "xvd", int(match[1]), int(match[2] or 0)
    elif match := _NAMED.fullmatch(vdev):
        kind, disk, partition = match[1], _disk_index(match[2]), int(match[3] or 0)
    else:
        raise _no_vdev(vdev)
    disks, partitions = _LIMITS[kind]
    if disk >= disks or partition >= partitions:
        raise _no_vdev(vdev)
    if kind == "sd":
        return 8 << 8 | disk << 4 | partition
    if kind == "hd":
        return (3 if disk < 2 else 22) << 8 | (disk & 1) << 6 | partition
    if disk < 16 and partition < 16:
        return 202 << 8 | disk << 4 | partition
    return 1 << 28 | disk << 8 | partition


def _disk_index(letters: str) -> int:
    """Return 0 for "a", 25 for "z", 26 for "aa"."""
    index = 0
    for letter in letters:
        index = index * 26 + ord(letter) - ord("a") + 1
    return index - 1


def _no_vdev(vdev: str) -> UserError:
    hint = "use xvda, xvdb, … or xvda1 for a partition"
    if vdev.startswith("/dev/"):
        hint = f"leave out /dev/: {vdev.removeprefix('/dev/')}"
    return UserError(f"{vdev!r} is not a virtual device that a guest can have", hint, EXIT_CODE)
