"""Random configurations, read by us and by Xen's own libxlutil where that is installed."""

import sys
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest

from pyxen.config.devices import Disk
from pyxen.config.disk import parse_disk
from pyxen.config.number import LONG_MAX, LONG_MIN, whole
from pyxen.config.parser import Atom, ListValue, parse_text
from pyxen.errors import UserError

sys.path.insert(0, str(Path(__file__).parent))
import xlu

ROUNDS = 1500
NAMES = ["a", "b", "ab", "a.b", "a_1", "name", "x"]

FRAGMENTS = (
    *("a", "b", "ab", "a.b", "a_1", "name", "=", "=", "=", "+=", '"x"', '"y z"', "'q'", "1"),
    *("0x10", "2", "[", "]", ",", ",", ";", "\n", "\n", " ", "\t", "#c", "#c\n", '"\\n"'),
    *('"\\q"', '"\\\\"', '"', "'", "-", "True", "%", '"a\\"b"', "[]", '["p","q"]', "\\", "é"),
    *('[ "1" ,\n 2 ]', '[["z"],"w"]', "[,]", '["m",]'),
)
VALUES = ('"x"', "1", "[]", '["p",\n"q"]', '[["z"],"w"]')
DISK_FRAGMENTS = (
    *("raw", "qcow2", "xvda", "hdc", "rw", "ro", "w", "r", ",", ",", ",", ",", ",", ":", "="),
    *("cdrom", "hdc:cdrom", "hda:disk", "phy:", "file:", "tap:", "aio:", "raw:", "qcow2:"),
    *("zzz:", "iscsi:", "/x", "/dev/vda", "target=", "format=", "vdev=", "access=", "phy"),
    *("backendtype=", "qdisk", "discard", "no-discard", "direct-io-safe", "script=", "devtype="),
    *("block-x", "backend=", " ", "\t", "foo=", "empty", "specification=", "xen", "colo"),
    *("colo-port=", "5", "X:"),
)
DISK_PARTS = (
    *("/x", "", "raw", "qcow2", "xvda", "hdc:cdrom", "rw", "ro", "format=raw", "vdev=xvda"),
    *("access=ro", "cdrom", "discard", "phy:/x", "tap:aio:/x", "target=/y,z", "backend=d"),
    *("devtype=cdrom", "xvda ", " xvdb", "hdc:", "foo:bar", "script=s", "backendtype=qdisk"),
    "/a=b",
)
BACKENDS = ("unknown", "phy", "tap", "qdisk", "standalone")
FORMATS = ("unknown", "qcow", "qcow2", "vhd", "raw", "empty", "qed")
SPECIFICATIONS = ("unknown", "xen", "virtio")


@pytest.fixture(scope="module")
def judge() -> Iterator[xlu.Xlu]:
    library = xlu.load()
    if library is None:
        pytest.skip("libxlutil 4.17 is not installed")
    yield library
    library.close()


def random_config(random: Random) -> str:
    """A file that is mostly rubbish, or mostly right with one thing spoilt.

    It ends in a newline: without one xl refuses a comment there, and accepts some rubbish.
    """
    if random.random() < 0.5:
        return "".join(random.choices(FRAGMENTS, k=random.randrange(1, 14))) + "\n"
    text = ""
    for _ in range(random.randrange(1, 4)):
        name, sign = random.choice(("a", "b", "ab")), random.choice(("=", " = ", "+="))
        text += name + sign + random.choice(VALUES) + random.choice(("\n", ";", "\n#c\n", ""))
    if random.random() < 0.3:
        at = random.randrange(len(text))
        text = text[:at] + random.choice(FRAGMENTS) + text[at:]
    return text + "\n"


def our_settings(text: str) -> dict[str, bytes | list[bytes]] | None:
    """What `Xlu.settings` returns, by our parser."""
    try:
        settings = parse_text(text, "test").settings
    except UserError:
        return None
    return {
        name: value.text.encode() if isinstance(value, Atom) else leading(value)
        for name in NAMES
        if name in settings and (value := settings[name].value)
    }


def leading(value: ListValue) -> list[bytes]:
    """The strings of a list up to the first item that is a list."""
    found = []
    for item in value.items:
        if not isinstance(item, Atom):
            break
        found.append(item.text.encode())
    return found


@pytest.mark.parametrize("seed", range(4))
def test_grammar(judge: xlu.Xlu, seed: int) -> None:
    random = Random(seed)
    accepted = 0
    for _ in range(ROUNDS):
        text = random_config(random)
        theirs = judge.settings(text.encode(), NAMES)
        assert our_settings(text) == theirs, text
        accepted += theirs is not None
    assert accepted > ROUNDS // 10


def random_disk(random: Random) -> str:
    """A disk specification. None ends in '=': the library's scanner forgets such an end."""
    if random.random() < 0.3:
        spec = "".join(random.choices(DISK_FRAGMENTS, k=random.randrange(9)))
    else:
        spec = ",".join(random.choices(DISK_PARTS, k=random.randrange(1, 6)))
    return spec.rstrip("=")


def decided(defbool: int) -> bool | None:
    return None if defbool == 0 else defbool > 0


def text(value: bytes | None) -> str | None:
    return None if value is None else value.decode()


def as_record(disk: xlu.DeviceDisk) -> Disk:
    """Xen's structure as our record."""
    return Disk(
        backend_domname=text(disk.backend_domname),
        pdev_path=text(disk.pdev_path),
        vdev=text(disk.vdev),
        backend=BACKENDS[disk.backend],
        format=FORMATS[disk.format],
        script=text(disk.script),
        removable=disk.removable,
        readwrite=disk.readwrite,
        is_cdrom=disk.is_cdrom,
        direct_io_safe=disk.direct_io_safe,
        discard_enable=decided(disk.discard_enable),
        specification=SPECIFICATIONS[disk.specification],
        colo_enable=decided(disk.colo_enable),
        colo_port=disk.colo_port,
        trusted=decided(disk.trusted),
    )


@pytest.mark.parametrize("seed", range(4))
def test_disk(judge: xlu.Xlu, seed: int) -> None:
    random = Random(seed)
    accepted = 0
    for _ in range(ROUNDS):
        spec = random_disk(random)
        found = judge.disk(spec.encode())
        try:
            ours = parse_disk([spec])
        except UserError:
            ours = None
        assert ours == (as_record(found) if found else None), spec
        accepted += found is not None
    assert accepted > ROUNDS // 20


NUMBERS = (
    *("0", "256", "0x100", "0400", "08", "0x", "1x", "0xg", " 7", "7 ", "", "-5", "+5", "1e3", "٣"),
    *("9223372036854775807", "9223372036854775808", "-9223372036854775808", "-9223372036854775809"),
    *("9" * 40, "0x" + "f" * 30, "- 5", "--5", "0b1", "0o7", "1_000"),
)


@pytest.mark.parametrize("literal", NUMBERS)
def test_number(judge: xlu.Xlu, literal: str) -> None:
    ours = whole(literal)
    if ours is not None and not LONG_MIN <= ours <= LONG_MAX:
        ours = None
    assert ours == judge.number(f'n="{literal}"\n'.encode(), "n")
