"""From a file's text to a DomainConfig: meanings, warnings and refusals."""

import json
import random
from pathlib import Path

import pytest

from pyxen.config.cpus import Host
from pyxen.config.domain_config import DomainConfig
from pyxen.config.json_output import to_xl_json
from pyxen.config.load import interpret, load_domain_config
from pyxen.config.parser import parse_text
from pyxen.config.report import ConfigWarning
from pyxen.config.schema import KEYS, LATER_KEYS, OLD_KEYS, Kind
from pyxen.config.support import unsupported
from pyxen.errors import UserError

HOST = Host(4, ((0, 1, 2, 3),))
BASE = 'name="g"\nkernel="/k"\nmemory=256\n'


def load(text: str) -> tuple[DomainConfig, list[ConfigWarning]]:
    return interpret(parse_text(text, "f.cfg"), HOST)


def config(text: str) -> DomainConfig:
    cfg, warnings = load(BASE + text)
    assert not warnings
    return cfg


def warnings_of(text: str) -> str:
    return "\n".join(map(str, load(BASE + text)[1]))


def refusal(text: str) -> UserError:
    with pytest.raises(UserError) as caught:
        load(BASE + text)
    return caught.value


def test_what_a_small_pv_guest_is() -> None:
    cfg = config('ramdisk="/r"\nroot="/dev/xvda"\nextra="ro"\nvcpus=2\nmaxvcpus=4\nmaxmem=512\n')
    assert (cfg.name, cfg.type, cfg.kernel, cfg.ramdisk) == ("g", "pv", "/k", "/r")
    assert cfg.cmdline == "root=/dev/xvda ro"
    assert (cfg.vcpus, cfg.max_vcpus) == (2, 4)
    assert (cfg.memory_kib, cfg.maxmem_kib) == (256 << 10, 512 << 10)
    assert (cfg.on_poweroff, cfg.on_reboot, cfg.on_crash) == ("destroy", "restart", "destroy")
    assert not unsupported(cfg)


def test_defaults_of_the_tool_stack() -> None:
    cfg, warnings = load('name="g"\nkernel="/k"\n')
    assert (cfg.vcpus, cfg.max_vcpus, cfg.memory_kib, cfg.maxmem_kib) == (1, 1, 32768, 32768)
    assert "memory is not set" in str(warnings[0])
    assert cfg.cmdline == ""


def test_random_uuids_differ_and_are_version_4() -> None:
    uuids = {config("").uuid for _ in range(8)}
    assert len(uuids) == 8
    for uuid in uuids:
        assert len(uuid) == 36 and uuid[14] == "4" and uuid[19] in "89ab"


def test_overrides_come_last(tmp_path: Path) -> None:
    path = tmp_path / "a.cfg"
    path.write_text(BASE)
    cfg, _ = load_domain_config(str(path), ["memory=128", 'extra="x"', "vcpus=2"], HOST)
    assert (cfg.memory_kib, cfg.cmdline, cfg.vcpus) == (128 << 10, "x", 2)


def test_all_refusals_are_named_at_once() -> None:
    error = refusal('on_crash="explode"\nvif=["mac=1"]\ndisk=["/x,zip,xvda"]\nuuid="z"\n')
    for part in ("f.cfg:4:1", "f.cfg:5:6", "f.cfg:6:7", "f.cfg:7:1"):
        assert part in error.message
    assert error.exit_code == 1


def test_a_refusal_brings_the_warnings_along() -> None:
    with pytest.raises(UserError) as caught:
        load('nmae="g"\nkernel="/k"\n')
    first, second, *_ = caught.value.message.splitlines()
    assert "the domain has no name" in first and 'name = "demo"' in first
    assert second.startswith("f.cfg:1:1: warning:") and "did you mean 'name'?" in second


def test_exit_codes_are_those_of_xl() -> None:
    assert refusal('pci=["zz"]\n').exit_code == 6
    assert refusal('timer_mode="native"\n').exit_code == 3
    assert refusal('type="hvm"\nvendor_device="x"\n').exit_code == 3


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("frobnicate=1\n", "no setting 'frobnicate'; it is ignored"),
        ("memroy=64\n", "did you mean 'memory'?"),
        ("virtio=[]\n", "later Xen"),
        ('localtime="yes"\n', "1 for yes, 0 for no"),
        ('cap="x"\n', "not a number"),
        ("cap=99999999999999999999\n", "too large"),
        ("cap=1\ncap+=2\n", "does not add numbers"),
        ('disk="/a,raw,xvda"\n', 'write disk=["/a,raw,xvda"]'),
        ('disk=["/a,raw,xvda",["/b,raw,xvdb"]]\n', "itself a list"),
        ('kernel=["a"]\nbootloader="b"\n', "should be a single value"),
        ("maxmem=128\n", "more than maxmem"),
        ('vcpus=2\ncpus="0,9"\n', "there is no 9"),
        ('cmdline="a"\nroot="b"\n', "root and extra are ignored"),
        ("tsc_mode=1\n", 'tsc_mode="always_emulate"'),
        ('vif=["accel=1"]\n', "accel is ignored"),
        ('vif=["mac=0:0:0:0:0:1","mac=00:0:0:0:0:01"]\n', "two interfaces have the address"),
        ('disk=["/a,raw,xvda","/b,raw,d0p0"]\n', "the same device"),
        ('disk=["/a,raw,/dev/xvda"]\n', "leave out /dev/: xvda"),
    ],
)
def test_warnings(text: str, part: str) -> None:
    found = warnings_of(text)
    assert part in found
    assert found.startswith("f.cfg:")


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("vcpus=4\nmaxvcpus=2\n", "less than vcpus"),
        ("vcpus=99999999999\n", "between"),
        ('memory="-5"\n', "between"),
        ("maxmem=9223372036854775807\n", "between"),
        ('vcpus=1\ncpus="9"\n', "no CPU to run on"),
        ('vcpus=1\ncpus=""\n', "no CPU to run on"),
        ('type=""\n', "no guest type"),
        ('type="pvv"\n', "no guest type 'pvv'; did you mean 'pv"),
        ('firmware="pvgrub64"\n', "both kernel and firmware"),
        ('max_grant_version="-1"\n', "between"),
        ("vnuma=[[]]\nmaxvcpus=3\n", "maxvcpus is 3"),
        ('vnuma=["x"]\n', "should be a list"),
        ('device_model_args="x"\n', "must be a list"),
        ('bios="x"\ntype="hvm"\n', "no 'x'"),
        ('viridian=["bases"]\ntype="hvm"\n', "did you mean 'base'?"),
    ],
)
def test_refusals(text: str, part: str) -> None:
    assert part in refusal(text).message


def test_a_kernel_or_a_bootloader_is_needed() -> None:
    with pytest.raises(UserError) as caught:
        load('name="g"\n')
    assert "neither a kernel nor a bootloader" in caught.value.message
    assert load('name="g"\ntype="hvm"\n')[0].kernel is None


def test_beginnings_of_types_are_types() -> None:
    assert config('type="h"\n').type == "hvm"
    assert config('type="p"\n').type == "pv"
    assert config('builder="gen"\n').type == "pv"


def test_affinity() -> None:
    cfg = config('vcpus=2\ncpus=["0","1-2","3"]\n')
    assert cfg.b_info.vcpu_hard_affinity == [[0], [1, 2]]
    assert cfg.b_info.numa_placement is False
    assert config('cpus="2"\n').b_info.vcpu_hard_affinity == [[2]]


def test_settings_of_other_guest_types_are_left_out() -> None:
    text = 'boot="dc"\npvshim=1\nviridian=1\nserial="pty"\n'
    assert to_xl_json(config(text)).count('"boot"') == 0
    assert config('type="hvm"\n' + text).b_info.u != config(text).b_info.u


def test_unsupported_names_key_and_reason() -> None:
    cfg = config('vfb=["vnc=1"]\nvif=[]\nlocaltime=0\nhap=1\nboot="d"\ncap=50\n')
    lines = unsupported(cfg)
    assert [line.partition(":")[0] for line in lines] == ["vfb", "cap"]
    assert all(line.partition(": ")[2] for line in lines)
    assert "hvm" in unsupported(config('type="hvm"\n'))[0]


def test_json_is_printable_whatever_the_file_holds() -> None:
    cfg = config('extra="a\\"\\\\/\\x7f\\x01 ä \\xff"\n')
    text = to_xl_json(cfg)
    text.encode("utf-8")
    assert json.loads(text)["b_info"]["cmdline"] == cfg.cmdline
    assert "\\u0001" in text and "ä" in text


def test_schema_is_consistent() -> None:
    every = DomainConfig()
    for name, key in KEYS.items():
        assert name == key.name and key.doc
        assert (key.kind is Kind.CHOICE) == bool(key.choices) or key.kind is Kind.STEP
        root = key.into.partition(".")[0]
        if root in ("c_info", "b_info"):
            record: object = every
            for part in key.into.split("."):
                record = getattr(record, part)
    assert not set(KEYS) & {*LATER_KEYS, *OLD_KEYS}


@pytest.mark.parametrize("seed", range(3))
def test_no_text_makes_it_fail_otherwise(seed: int) -> None:
    """Whatever stands in a file: it is a configuration, or a UserError that names a place."""
    source = random.Random(seed)
    values = (
        *("1", "0", '"x"', '""', "[]", '["x"]', '[""]', '["a=b,c"]', '[["x"],["y=z"]]', '"1-2"'),
        *('"-1"', "99999999999999999999", '["="]', '[",,"]', '["a:b.c"]', '["0-9"]', '"host,a=1"'),
        *('["connection=pty"]', '["1:eax="]', '"all"', '["^1"]', "0x7fffffffffffffff"),
    )
    for _ in range(600):
        names = source.choices([*KEYS, "name", "kernel", "type"], k=source.randrange(1, 8))
        lines = [f"{name}={source.choice(values)}" for name in names]
        kind = source.choice(("pv", "pvh", "hvm"))
        text = f'name="g"\nkernel="k"\ntype="{kind}"\n' + "\n".join(lines)
        try:
            cfg, _ = load(text)
        except UserError as error:
            assert "f.cfg:" in error.message
            assert error.exit_code in (1, 3, 6)
        else:
            json.loads(to_xl_json(cfg))
            unsupported(cfg)
