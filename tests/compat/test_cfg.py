"""`xl create -n` on 241 small files, against what xl 4.17 on Xen printed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pyxen.config.cpus import Host
from pyxen.config.json_output import to_xl_json
from pyxen.config.load import load_domain_config
from pyxen.errors import UserError

GOLDEN = Path(__file__).parent / "golden" / "cfg.jsonl"
CASES: dict[str, dict[str, Any]] = {
    case["name"]: case for case in map(json.loads, GOLDEN.read_text(encoding="utf-8").splitlines())
}

THAT_HOST = Host(4, ((0, 1, 2, 3),))
"""The machine the cases were captured on."""

DIFFERENT_ON_PURPOSE = {
    "cpus-soft": "xl 4.17 forgets the CPU sets of a domain without vcpus=; later ones do not",
    "lex-bom": "xl refuses a byte order mark; an editor put it there, nobody meant it",
    "vif-keyupper": "xl leaves an unknown vif key out; we refuse it and name the nearest",
    "vif-mac-short": "xl takes the bytes it can read of a bad MAC address; we refuse it",
    "vif-noequals": "xl leaves an unknown vif key out; we refuse it",
    "vif-trusted": "xl leaves out trusted=0; we refuse it and say how untrusted is written",
    "vif-type-netfront": "xl leaves an unknown vif type out; we refuse it and name those there are",
    "vif-unknown": "xl leaves an unknown vif key out; we refuse it",
}


def run(case: dict[str, Any], directory: Path) -> tuple[int, str, str]:
    """Return exit code, output and messages of our reading of a case."""
    path = directory / f"{case['name']}.cfg"
    path.write_bytes(case["cfg_latin1"].encode("latin1"))
    try:
        cfg, warnings = load_domain_config(str(path), [], THAT_HOST)
    except UserError as error:
        return error.exit_code, "", f"{error.message} ({error.hint})"
    return 0, to_xl_json(cfg), "\n".join(map(str, warnings))


@pytest.mark.parametrize("name", sorted(set(CASES) - set(DIFFERENT_ON_PURPOSE)))
def test_case_is_read_as_xl_reads_it(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    exit_code, output, messages = run(case, tmp_path)
    assert exit_code == case["rc"], messages
    if not case["rc"]:
        theirs, ours = json.loads(case["out"]), json.loads(output)
        if "\nuuid" in case["cfg_latin1"]:
            assert ours["c_info"]["uuid"] == theirs["c_info"]["uuid"]
        same_uuid = output.replace(ours["c_info"]["uuid"], theirs["c_info"]["uuid"])
        assert same_uuid == case["out"]


@pytest.mark.parametrize("name", sorted(CASES))
def test_refusal_says_where(name: str, tmp_path: Path) -> None:
    exit_code, _, messages = run(CASES[name], tmp_path)
    assert not exit_code or f"{name}.cfg:" in messages


@pytest.mark.parametrize("name", sorted(DIFFERENT_ON_PURPOSE))
def test_difference_is_still_one(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    exit_code, output, _ = run(case, tmp_path)
    if exit_code == case["rc"] == 0:
        theirs, ours = json.loads(case["out"]), json.loads(output)
        assert ours["b_info"] != theirs["b_info"]
    else:
        assert exit_code != case["rc"]


def test_unknown_vif_key_names_the_nearest(tmp_path: Path) -> None:
    exit_code, _, messages = run(CASES["vif-keyupper"], tmp_path)
    assert exit_code == 1
    assert "did you mean 'mac'?" in messages


def test_affinity_without_vcpus_is_kept(tmp_path: Path) -> None:
    _, output, _ = run(CASES["cpus-soft"], tmp_path)
    assert json.loads(output)["b_info"]["vcpu_soft_affinity"] == [[0, 1]]


def test_byte_order_mark_is_no_part_of_the_file(tmp_path: Path) -> None:
    _, output, _ = run(CASES["lex-bom"], tmp_path)
    assert json.loads(output)["c_info"]["name"] == "g"
