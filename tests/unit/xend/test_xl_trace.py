"""xl trace, against a stand-in domain that says what it was asked for."""

import json
import signal
import subprocess

import pytest

from pyxen.xl.table import COMMANDS, matches


@pytest.fixture
def traced(host):
    host.create("d1")
    return host


def asked(done):
    """The header that the domain got."""
    return json.loads(done.stdout.splitlines()[0].split("event", 1)[1])


def test_lines(traced):
    done = traced.xl("trace", "-n", "2", "d1")
    assert done.returncode == 0
    _, lost, last = done.stdout.splitlines()
    assert lost == "... 3 records lost: nobody read them in time"
    assert last == "    12.000000 v1 hypercall   stack_switch ss=0 -> 0"
    assert asked(done) == {"stream": "trace", "names": [], "form": "text", "limit": 2}
    assert done.stderr.splitlines() == [
        "Tracing d1 (domain 1). Ctrl-C ends it.",
        "3 of 5 records were lost.",
    ]


def test_what_is_asked_for(traced):
    done = traced.xl("trace", "-e", "mmu_update, evtchn", "--traps", "-n", "2", "-e", "iret", "d1")
    assert asked(done)["names"] == ["traps", "mmu_update", "evtchn", "iret"]
    assert "native hot path is off" in done.stderr


def test_json_and_a_file(traced, tmp_path):
    done = traced.xl("trace", "--json", "-n", "2", "-o", str(tmp_path / "log"), "d1")
    assert done.stdout == ""
    lines = [json.loads(line) for line in (tmp_path / "log").read_text().splitlines()]
    assert [line.get("vcpu") for line in lines] == [0, None, 1]
    assert lines[1] == {"lost": 3}
    assert json.loads(lines[0]["text"])["form"] == "json"
    done = traced.xl("trace", "-o", str(tmp_path / "no" / "log"), "d1")
    assert done.returncode == 1 and "cannot write" in done.stderr


def test_counts(traced):
    done = traced.xl("trace", "-c", "-d", "0.2", "d1")
    assert done.returncode == 0
    heading, rule, *rows, rule_again, total, elapsed = done.stdout.splitlines()
    assert heading.split() == ["%", "time", "seconds", "usecs/call", "calls", "errors", "name"]
    assert rule == rule_again
    assert [row.split() for row in rows] == [
        ["100.00", "0.000009", "2.25", "4", "1", "sched_op", "poll"],
        ["0.00", "0.000000", "0.00", "2", "event", "upcall"],
    ]
    assert total.split() == ["100.00", "0.000009", "6", "1", "total"]
    assert elapsed == "in 2.000 seconds"


def test_a_time_limit_is_counted_from_the_start(traced):
    done = traced.xl("trace", "-d", "0.2", "d1")
    assert done.returncode == 0 and len(done.stdout.splitlines()) == 3


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_ends_it_in_good_order(traced, number):
    running = traced.xl_start("trace", "-c", "d1", stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert "Tracing d1" in running.stderr.readline()
    running.send_signal(number)
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "sched_op poll" in out


def test_a_paused_domain(host):
    host.create("d1", paused=True)
    done = host.xl("trace", "-n", "2", "d1")
    assert done.returncode == 0 and "it is paused" in done.stderr


def test_a_domain_whose_process_vanishes(traced):
    done = traced.xl("trace", "-n", "7", "d1")
    assert done.returncode == 1 and "process is gone" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("nobody",), 1, "nobody is an invalid domain identifier"),
        (("77",), 1, "77"),
        (("0",), 1, "the host itself"),
        (("-n", "0", "d1"), 2, "-n: '0' is no number above 0"),
        (("-d", "nan", "d1"), 2, "-d: 'nan'"),
        (("-x", "d1"), 2, "option -x"),
        ((), 2, "requires at least 1 argument"),
    ],
)
def test_what_it_refuses(traced, words, code, message):
    done = traced.xl("trace", *words)
    assert done.returncode == code
    assert message in done.stderr


def test_xens_own_abbreviations_stay_what_they_are():
    assert [command.name for command in matches("tr")] == ["trigger"]
    assert [command.name for command in matches("tra")] == ["trace"]
    assert [command.name for command in COMMANDS.values() if command.own] == ["trace"]
