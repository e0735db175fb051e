"""Specifications of disks, interfaces and the other devices."""

import pytest

from pyxen.config.cpuid import parse_cpuid_leaves, parse_cpuid_words
from pyxen.config.cpus import Host, parse_cpus
from pyxen.config.devices import Disk, IomemRange, IoportRange, Nic, Pci
from pyxen.config.disk import parse_disk
from pyxen.config.display import parse_vdispl, parse_vfb, parse_vkb
from pyxen.config.pci import parse_pci
from pyxen.config.plain_devices import (
    parse_channel,
    parse_p9,
    parse_pvcalls,
    parse_usbctrl,
    parse_usbdev,
    parse_vtpm,
)
from pyxen.config.ranges import parse_iomem, parse_ioports, parse_irq
from pyxen.config.sound import parse_vsnd
from pyxen.config.vif import parse_vif
from pyxen.config.vnuma import parse_vnuma
from pyxen.errors import UserError

HOST = Host(4, ((0, 1), (2, 3)))


def silent(message: str) -> None:
    raise AssertionError(f"unexpected warning: {message}")


def vif(*specs: str) -> Nic:
    return parse_vif(specs, 0, silent)


def test_disk_words_add_up() -> None:
    disk = parse_disk(["format=raw", "vdev=xvdb", "access=ro", "target=/a,b"])
    assert disk == Disk(pdev_path="/a,b", vdev="xvdb", format="raw", readwrite=0)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("/x,raw,xvda,rw,extra", "one parameter too many"),
        ("/x,zip,xvda", "'zip' is no format"),
        ("/x,raw,xvda,q", "'q' is no access"),
        ("form=raw,vdev=xvda,target=/x", "did you mean 'format'?"),
        ("Vdev=xvda,target=/x", "is not a parameter"),
        ("vdev=xvda,vdev=xvdb,target=/x", "vdev is given twice"),
        ("format=raw,format=vhd,vdev=xvda", "format is given twice"),
        ("qcow3:/x,xvda,w", "did you mean 'qcow"),
        ("/x,raw", "no vdev"),
        ("vdev=xvda", "no target"),
        ("/a=b,raw,xvda", "is not a parameter"),
        ("colo-port=x,vdev=xvda,target=/x", "port number"),
        ("/x,raw,hda:tape", "'tape' is no devtype"),
    ],
)
def test_bad_disks(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_disk([spec])
    assert message in caught.value.message
    assert spec in caught.value.message


def test_empty_cdrom_drive() -> None:
    assert parse_disk([",hdc:cdrom,r"]).format == "empty"
    assert parse_disk(["vdev=hdc,cdrom"]).format == "empty"


def test_vif_everything() -> None:
    nic = vif("mac=00-16-3E-0-0-a, bridge=br0,rate=1MB/s@20ms", "ip=10.0.0.2,mtu=9000,untrusted")
    assert nic == Nic(
        devid=0,
        mac="00:16:3e:00:00:0a",
        bridge="br0",
        ip="10.0.0.2",
        mtu=9000,
        rate_bytes_per_interval=20000,
        rate_interval_usecs=20000,
        trusted=False,
    )


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("brigde=br0", "did you mean 'bridge'?"),
        ("mac=00:16:3e:00:00:01:02", "six bytes"),
        ("mac=00:16:3e:00:00:zz", "six bytes"),
        ("mac", "needs a value"),
        ("mtu=big", "a number"),
        ("devid=1x", "a number"),
        ("trusted=1", "takes no value"),
        ("rate=10", "no rate"),
        ("rate=0Mb/s", "out of range"),
        ("rate=1Mb/s@", "no rate"),
        ("rate=1Mb/s@5000s", "out of range"),
        ("rate=99999999999Mb/s", "out of range"),
    ],
)
def test_bad_vifs(spec: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        vif(spec)
    assert message in caught.value.message


def test_multicast_mac_is_warned_about() -> None:
    warnings: list[str] = []
    parse_vif(["mac=01:00:5e:00:00:01"], 0, warnings.append)
    assert "multicast" in warnings[0]


def test_zero_mac_is_a_random_one() -> None:
    assert vif("mac=00:00:00:00:00:00").mac is None


@pytest.mark.parametrize(
    ("spec", "cpus", "absent"),
    [
        ("all", [0, 1, 2, 3, 4, 5, 6, 7], ""),
        ("0-2,^1", [0, 2], ""),
        ("^0,0", [0], ""),
        ("nodes:1", [2, 3], ""),
        ("node:0,^node:0,3", [3], ""),
        ("all,^nodes:0", [2, 3, 4, 5, 6, 7], ""),
        ("3-9", [3, 4, 5, 6, 7], "3-9"),
        ("9", [], "9"),
        ("0-18446744073709551614", [0, 1, 2, 3, 4, 5, 6, 7], "0-18446744073709551614"),
        ("nodes:7", [], "nodes:7"),
        ("", [], ""),
    ],
)
def test_cpus(spec: str, cpus: list[int], absent: str) -> None:
    found = parse_cpus(spec, HOST)
    assert (found.cpus, found.absent) == (cpus, absent)


@pytest.mark.parametrize("spec", ["3-1", "^all", "x", "1-", "-1", "1,,z", "0x1", "nodes:x"])
def test_bad_cpus(spec: str) -> None:
    with pytest.raises(UserError):
        parse_cpus(spec, HOST)


def test_pci() -> None:
    pci = parse_pci("0001:0a:1f.7@4,permissive=1,rdm_policy=relaxed", Pci(msitranslate=True))
    assert (pci.domain, pci.bus, pci.dev, pci.func, pci.vdevfn) == (1, 10, 31, 7, 32)
    assert (pci.permissive, pci.msitranslate, pci.rdm_policy) == (True, True, "relaxed")
    assert parse_pci("00:03.*", Pci()).vfunc_mask == 0xFF
    assert parse_pci("bdf=00:03.1,vslot=5", Pci()).vdevfn == 40
    assert parse_pci("name=gpu", Pci()).name == "gpu"


@pytest.mark.parametrize(
    "spec", ["zz", "", "00:20.0", "00:03.8", "00:03.0@20", "00:03.0x", "name=a,bdf=00:03.0", "x=1"]
)
def test_bad_pci(spec: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_pci(spec, Pci())
    assert caught.value.exit_code == 6


def test_host_resources() -> None:
    assert parse_ioports("2f8-2ff") == IoportRange(0x2F8, 8)
    assert parse_ioports("0x60") == IoportRange(0x60, 1)
    assert parse_irq("5") == 5
    assert parse_iomem("f0000,1@a0") == IomemRange(0xF0000, 1, 0xA0)
    for parse, spec in (
        (parse_ioports, "2ff-2f8"),
        (parse_ioports, "g"),
        (parse_irq, "x"),
        (parse_iomem, "1"),
    ):
        with pytest.raises(UserError):
            parse(spec)


def test_frame_buffers() -> None:
    vfb = parse_vfb("type=vnc, vnc=1,vncdisplay=3,keymap=de,sdl=0", 2, silent)
    assert (vfb.devid, vfb.vnc.enable, vfb.vnc.display, vfb.sdl.enable) == (2, True, 3, False)
    assert vfb.keymap == "de"
    warnings: list[str] = []
    parse_vfb("vncdisplai=3,what,vnc=1", 0, warnings.append)
    assert "did you mean 'vncdisplay'?" in warnings[0]
    assert "has no '='" in warnings[1]


def test_keyboards_and_displays() -> None:
    vkb = parse_vkb("backend-type=linux,multi-touch-width=10", 0)
    assert (vkb.backend_type, vkb.feature_multi_touch) == ("linux", True)
    vdispl = parse_vdispl("backend=dd,connectors=a:640x480;b:800x600", 0)
    assert [(c.unique_id, c.width, c.height) for c in vdispl.connectors] == [
        ("a", 640, 480),
        ("b", 800, 600),
    ]
    for parse, spec in (
        (parse_vkb, "width=1"),
        (parse_vkb, "backend-type=x"),
        (parse_vkb, "backend-type=qemu,feature-multi-touch=1"),
        (parse_vdispl, "backend=x"),
        (parse_vdispl, "connectors=a:1"),
    ):
        with pytest.raises(UserError):
            parse(spec, 0)


def test_sound_card() -> None:
    card = parse_vsnd(
        [
            "CARD, short-name=Main, sample-formats=s16_le;U8",
            "PCM, name=dev1, sample-rates=8000;44100",
            "STREAM, unique-id=p0, type=P, buffer-size=10",
        ],
        0,
    )
    assert (card.short_name, card.params.sample_formats) == ("Main", ["s16_le", "u8"])
    assert card.pcms[0].params.sample_rates == [8000, 44100]
    assert (card.pcms[0].streams[0].type, card.pcms[0].streams[0].params.buffer_size) == ("p", 10)
    for bad in ("horn", "card, name=x", "pcm, sample-formats=mp3", ""):
        with pytest.raises(UserError):
            parse_vsnd([bad], 0)


def test_plain_devices() -> None:
    assert parse_channel("connection=pty, name=org.x", 0, silent).name == "org.x"
    assert parse_p9("tag=t,path=/,security_model=none").path == "/"
    assert parse_vtpm("backend=dom", 3).devid == 3
    assert parse_pvcalls("backend=dom", 0).backend_domname == "dom"
    assert parse_usbctrl("type=QUSB,version=2", 0).type == "qusb"
    usb = parse_usbdev("type=hostdev,hostbus=1,hostaddr=3,controller=0,port=2")
    assert (usb.u.hostbus, usb.u.hostaddr, usb.ctrl, usb.port) == (1, 3, 0, 2)


@pytest.mark.parametrize(
    "spec", ["name=x", "connection=tcp", "connection=socket", "connection=", "pty"]
)
def test_bad_channels(spec: str) -> None:
    with pytest.raises(UserError):
        parse_channel(spec, 0, silent)


@pytest.mark.parametrize(
    ("parse", "spec"),
    [
        (parse_vtpm, "uuid=12345678-1234-1234-1234-123456789abc"),
        (parse_vtpm, "backend=d,uuid=1"),
        (parse_vtpm, "backend=d,uuid=1234567x-1234-1234-1234-123456789abc"),
        (parse_pvcalls, "front=x"),
        (parse_usbctrl, "type=usb9"),
    ],
)
def test_bad_plain_devices(parse, spec: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(UserError):
        parse(spec, 0)


def test_p9_names_what_is_missing() -> None:
    with pytest.raises(UserError, match="path and security_model"):
        parse_p9("tag=t")


def test_vnuma() -> None:
    nodes = parse_vnuma(
        [["pnode=0", "size=64", "vcpus=0-1", "vdistances=10,20"], ["vcpus = 2,3"]], HOST, silent
    )
    assert nodes[0].vcpus == [0, 1] and nodes[0].memkb == 65536
    assert nodes[0].distances == [10, 20] and nodes[1].vcpus == [2, 3]


@pytest.mark.parametrize(
    "word", ["pnode=2", "size=x", "vcpus=2-1", "vcpus=0-99999999", "vdistances=1,2,3", "size", ""]
)
def test_bad_vnuma(word: str) -> None:
    with pytest.raises(UserError):
        parse_vnuma([[word], []], HOST, silent)


def test_cpuid_words() -> None:
    policy = parse_cpuid_words("host,tm=0,sse3=k,family=17,model=0x5a,rdcl-no=1", silent)
    assert policy is not None
    (leaf,) = policy.cpuid
    assert (leaf.leaf, leaf.subleaf) == (1, None)
    assert leaf.edx == "xx0" + "x" * 29
    assert leaf.ecx == "x" * 31 + "k"
    assert leaf.eax == "xxxx" + "00000010" + "0101" + "xxxx" + "1111" + "1010" + "xxxx"
    assert (policy.msr[0].index, policy.msr[0].policy) == (0x10A, "x" * 63 + "1")


def test_bad_cpuid_words_are_named() -> None:
    warnings: list[str] = []
    assert parse_cpuid_words("host,sse33=1,tm,tm=q", warnings.append) is None
    assert "did you mean 'sse3'?" in warnings[0]
    assert len(warnings) == 3
    assert parse_cpuid_words("guest,tm=0", warnings.append) is None


def test_cpuid_leaves() -> None:
    ones = "1" * 32
    policy = parse_cpuid_leaves([f"0x7,0:ebx={ones}, ecx={ones}", f"1:eax={ones}"], silent)
    assert policy is not None
    assert [(e.leaf, e.subleaf, e.ebx) for e in policy.cpuid] == [(7, 0, ones), (1, None, None)]
    warnings: list[str] = []
    for bad in ("x:eax=1", "1,y:eax=1", "1", "1:rax=" + ones, "1:eax=01"):
        parse_cpuid_leaves([bad], warnings.append)
    assert len(warnings) == 5
