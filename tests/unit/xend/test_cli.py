"""The pyxen command."""

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
