"""Amounts of memory and virtual device numbers."""

import pytest

from pyxen.config.memory import parse_memory_kib
from pyxen.config.number import leading, strtol
from pyxen.config.vdev import vdev_number
from pyxen.errors import UserError


@pytest.mark.parametrize(
    ("text", "kib"),
    [
        ("256", 262144),
        ("256m", 262144),
        ("256M", 262144),
        ("1g", 1 << 20),
        ("1T", 1 << 30),
        ("2048k", 2048),
        ("4096b", 4),
        ("0", 0),
    ],
)
def test_memory(text: str, kib: int) -> None:
    assert parse_memory_kib(text) == kib


@pytest.mark.parametrize("text", ["", "m", "12zz", "1mb", "-5", "0x10", "1.5g", "9" * 30])
def test_bad_memory(text: str) -> None:
    with pytest.raises(UserError):
        parse_memory_kib(text)


@pytest.mark.parametrize(
    ("vdev", "number"),
    [
        ("xvda", 51712),
        ("xvdb2", 51730),
        ("xvdp15", 51967),
        ("xvdq", (1 << 28) | (16 << 8)),
        ("xvda16", (1 << 28) | 16),
        ("xvdtq37", (1 << 28) | (536 << 8) | 37),
        ("d0p1", 51713),
        ("d0", 51712),
        ("d536p37", (1 << 28) | (536 << 8) | 37),
        ("hda", 768),
        ("hdb1", 833),
        ("hdc2", 5634),
        ("sdb3", 2067),
        ("0xca00", 51712),
        ("51712", 51712),
    ],
)
def test_vdev(vdev: str, number: int) -> None:
    assert vdev_number(vdev) == number


BAD_VDEVS = (
    *("", "xvd", "xvda0", "xvda256", "xvdzzzzzz", "hde", "hda64", "sdq", "sda16", "/dev/xvda"),
    *("frob", "XVDA", "xvda1p", "d0p256", "d1048576", "-1", "99999999999", "vda"),
)


@pytest.mark.parametrize("vdev", BAD_VDEVS)
def test_bad_vdev(vdev: str) -> None:
    with pytest.raises(UserError) as caught:
        vdev_number(vdev)
    assert caught.value.exit_code == 3


def test_numbers_are_read_as_c_reads_them() -> None:
    assert strtol("0x1fg") == (31, "g")
    assert strtol("017") == (15, "")
    assert strtol("0x") == (0, "x")
    assert strtol("  -7 ") == (-7, " ")
    assert strtol("ff", 16) == (255, "")
    assert strtol("x") is None
    assert leading("12abc") == 12
    assert leading("abc") == 0
