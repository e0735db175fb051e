"""The pyxen command."""

import json
import subprocess

import pytest

from pyxen.cli.main import main


@pytest.fixture
def pyxen(host, monkeypatch, capsys):
    monkeypatch.setenv("PYXEN_HOME", str(host.home))

    def run(*words):
        return main(list(words)), capsys.readouterr()

    return run


def test_env_is_for_eval(pyxen, host):
    code, said = pyxen("env")
    shown = subprocess.run(
        ["sh", "-c", 'eval "$1"; echo "$XENSTORED_PATH"', "sh", said.out],
        capture_output=True,
        text=True,
        check=True,
    )
    assert (code, shown.stdout.strip()) == (0, str(host.paths.xenstored_socket))


def test_doctor_names_what_it_looked_at(pyxen):
    _, said = pyxen("doctor")
    for subject in ("Python", "unicorn", "engine", "memory", "state", "xend"):
        assert subject in said.out
    assert "runs, 0 domains" in said.out


def test_hypercalls(pyxen):
    code, said = pyxen("hypercalls")
    assert code == 0 and "mmu_update" in said.out


def test_hypercalls_of_a_domain(pyxen, host):
    host.create("d1")
    code, said = pyxen("hypercalls", "d1", "--json")
    assert code == 0
    shown = json.loads(said.out)
    calls = {row["name"]: (row["calls"], row["failed"]) for row in shown["hypercalls"]}
    assert shown["name"] == "d1"
    assert (calls["sched_op"], calls["event_channel_op"]) == ((7, 1), (0, 0))
    assert calls["(all others)"] == (3, 2), "11 is in the table, 43 and 63 are not"
    assert shown["native"] == {"iret": 5}
    code, said = pyxen("hypercalls", "d1")
    [line] = [line for line in said.out.splitlines() if line.startswith(" 29 ")]
    assert line.split() == ["29", "sched_op", "7", "1", "implemented"]
    assert "iret                          5" in said.out


def test_hypercalls_of_nobody(pyxen):
    code, said = pyxen("hypercalls", "nobody")
    assert code == 1 and "nobody is an invalid domain identifier" in said.err


def test_hypercalls_as_json(pyxen):
    code, said = pyxen("hypercalls", "--json")
    rows = {row["name"]: row for row in json.loads(said.out)["hypercalls"]}
    assert code == 0 and rows["iret"]["number"] == 23 and "calls" not in rows["iret"]


def test_unit_and_version(pyxen):
    assert "--system" in pyxen("systemd-unit")[1].out
    assert "Xen 4.17" in pyxen("version")[1].out


def test_stop_leaves_domains_running(pyxen, host):
    domid = host.create("d1")
    assert pyxen("xend", "--stop")[0] == 0
    assert host.process.wait(30) == 0
    assert pyxen("xend", "--stop")[0] == 1
    host.start()
    assert host.entry(domid)["state"]["blocked"]


def test_wrong_use_is_exit_2(pyxen):
    with pytest.raises(SystemExit) as wrong:
        pyxen("frobnicate")
    assert wrong.value.code == 2
