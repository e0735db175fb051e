"""xl against what real xl 4.17 printed: exit codes, columns, options, the nodes in xenstore.

golden/xl_host.jsonl: commands on a host without guests (help texts reduced to their options);
golden/xl_life.jsonl: a PV guest's life.
"""

import json
import re
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "unit" / "xend"))

from xend_harness import Host, config  # noqa: E402

from pyxen.xl.command import Words  # noqa: E402
from pyxen.xl.list import list_header, list_line, vcpu_line  # noqa: E402
from pyxen.xl.main import main  # noqa: E402


def cases(name):
    return [json.loads(line) for line in (HERE / "golden" / name).read_text().splitlines()]


HOST_CASES = cases("xl_host.jsonl")
LIFE = {case["name"]: case["out"] for case in cases("xl_life.jsonl")}

DIFFERENT = {
    "host/pause-99": 1,  # real xl says that it failed, and exits with 0
    "host/unpause-99": 1,
    "host/uptime-missing": 1,
    "help-opt/config-update": 0,  # real xl takes --help for a domain
}
"""Exit codes that differ on purpose."""

WITHOUT_OUTPUT = {"info", "vcpu-list", "dmesg", "help"}
"""Commands whose output is compared apart from this."""


@pytest.fixture(scope="module")
def quiet_host(tmp_path_factory):
    host = Host(tmp_path_factory.mktemp("golden") / "h").start()
    yield host
    host.close()


@pytest.fixture
def xl(quiet_host, monkeypatch, capsys):
    monkeypatch.setenv("PYXEN_HOME", str(quiet_host.home))

    def run(command):
        code = main(command.split()[1:])
        return code, capsys.readouterr().out

    return run


def shape(text):
    """Text with its right-justified numbers masked: columns and widths stay."""
    return re.sub(r" *\d[\d.:]*", lambda number: "#" * len(number[0]), text)


@pytest.mark.parametrize("case", HOST_CASES, ids=[case["name"] for case in HOST_CASES])
def test_host(case, xl):
    code, out = xl(case["cmd"])
    assert code == DIFFERENT.get(case["name"], case["rc"])
    if "options" in case:
        assert_options(case, out)
    elif "list -l" in case["cmd"]:
        assert keys(json.loads(out)) == keys(json.loads(case["out"]))
    elif not WITHOUT_OUTPUT & set(case["cmd"].split()) and case["out"].strip():
        assert shape(out).split("\n") == shape(case["out"]).split("\n")


def assert_options(case, out):
    """The help that is shown has the options of the real one."""
    if case["globals"] is None:
        return
    assert f"Usage: xl {case['globals']} " in out
    missing = [o for o in case["options"] if not re.search(rf"(?<![\w-]){o}(?![\w-])", out)]
    assert missing == []


def keys(value):
    if isinstance(value, dict):
        return {key: keys(inner) for key, inner in value.items()}
    return [keys(inner) for inner in value] if isinstance(value, list) else None


def test_info_has_the_same_keys_in_order(xl):
    real = next(case["out"] for case in HOST_CASES if case["name"] == "host/info")
    wanted = [line.partition(":")[0] for line in real.splitlines() if "hw_caps" not in line]
    assert [line.partition(":")[0] for line in xl("xl info")[1].splitlines()] == wanted


def test_host_vcpus(xl):
    real = next(case["out"] for case in HOST_CASES if case["name"] == "host/vcpu-list")
    out = xl("xl vcpu-list")[1]
    assert out.splitlines()[0] == real.splitlines()[0]
    same = [re.sub(r"(r--|-b-)", "???", shape(text.splitlines()[1])) for text in (out, real)]
    assert same[0] == same[1]


LINE = re.compile(r"(.{40}) +(\d+) +(\d+) +(\d+)     (\S{6}) +([\d.]+)(?: (\S{36}) +(\S+) +-)?$")
REASONS = {"-": "poweroff", "r": "reboot", "c": "crash"}


@pytest.mark.parametrize("name", [n for n in LIFE if "list" in n and "v" not in n.split("/")[1]])
def test_list_lines(name):
    check_list(LIFE[name], Words({}, []))


@pytest.mark.parametrize("name", ["life/list-paused-v", "crash/preserve-list-v"])
def test_verbose_list_lines(name):
    check_list(LIFE[name], Words({"v": [""]}, []))


def check_list(text, given):
    header, *lines = text.splitlines()
    assert list_header(given) == header
    for line in lines:
        name, domid, mem, vcpus, letters, seconds, uuid, _ = LINE.match(line).groups()
        down = letters[3] == "s"
        entry = {
            "name": name.rstrip(),
            "domid": int(domid),
            "memory_kib": int(mem) * 1024,
            "vcpus_online": int(vcpus),
            "state": {
                "running": letters[0] == "r",
                "blocked": letters[1] == "b",
                "paused": letters[2] == "p",
                "shutdown": down,
                "dying": letters[5] == "d",
            },
            "shutdown_reason": REASONS[letters[4]] if down else None,
            "cpu_time_ns": round(float(seconds) * 1e9),
            "uuid": uuid,
        }
        assert list_line(entry, given) == line


@pytest.mark.parametrize("name", ["crash/vcpu-list-1", "life-paused/vcpu-list-paused"])
def test_vcpu_lines(name):
    for line in LIFE[name].splitlines()[1:]:
        domain, domid, number, cpu, state, seconds, *_ = line.split()
        vcpu = {
            "id": int(number),
            "cpu": 0 if cpu == "-" else int(cpu),
            "state": {"r": "running", "b": "blocked"}.get(state.strip("-"), "stopped"),
            "cpu_time_ns": round(float(seconds) * 1e9),
        }
        if state == "--p":
            vcpu["state"] = "offline"
        assert vcpu_line({"name": domain, "domid": int(domid)}, vcpu) == line


GUEST_WRITES = re.compile(r"/control/feature-|/store/ring-ref|/console/(ring-ref|tty)|/start_time")
"""Nodes whose value is the guest's, or different each time."""
NOT_OURS = re.compile(r"^/(@|tool)|^/local/domain/0/(control|memory)")


def parsed(text, domid):
    """{path: (value, permissions)} from `xenstore-ls -fp`, for the guest numbered `domid`."""
    found = {}
    for line in text.splitlines():
        path, value, perms = re.fullmatch(r'(\S+) = "(.*)"\s+\((.*)\)', line).groups()
        own = rf"(/local/domain|/libxl|/backend/console)/{domid}(?=/|$)"
        path, value = (re.sub(own, r"\1/N", each) for each in (path, value))
        if NOT_OURS.search(path):
            continue
        if GUEST_WRITES.search(path):
            value = "?"
        if path.endswith(("/domid", "/frontend-id")):
            value = value.replace(str(domid), "N")
        perms = re.sub(rf"([nrwb]){domid}\b", r"\1N", perms)
        found[path] = (value, perms)
    return found


def dump(host):
    """The whole tree in the form of `xenstore-ls -fp`."""
    from pyxen.paths import connect_unix
    from pyxen.proto import xs

    lines = []
    with connect_unix(host.paths.xenstored_socket) as sock:
        stream = xs.MessageStream()

        def ask(request):
            sock.sendall(xs.request_message(request, 1).pack())
            while True:
                stream.feed(sock.recv(4096))
                for message in stream:
                    assert message.op != xs.Op.ERROR
                    return message.payload.decode()

        def walk(path):
            for name in ask(xs.Directory(path or "/")).split("\0")[:-1]:
                child = f"{path}/{name}"
                perms = ",".join(ask(xs.GetPerms(child)).split("\0")[:-1])
                lines.append(f'{child} = "{ask(xs.Read(child))}"   ({perms})')
                walk(child)

        walk("")
    return "\n".join(lines)


def test_the_nodes_of_a_guest(quiet_host):
    wanted = parsed(LIFE["life/xenstore-ls-fp"], 4)
    guest = config("pv1", "console=hvc0 loglevel=4", uuid="11111111-2222-3333-4444-555555555555")
    guest["b_info"].update(
        max_vcpus=2,
        max_memkb=262144,
        target_memkb=196608,
        kernel="/root/vmlinuz",
        ramdisk="/root/initrd.gz",
    )
    domid = quiet_host.call("create", config=guest, paused=True)["domid"]
    found = parsed(dump(quiet_host), domid)
    quiet_host.call("destroy", domain=domid)
    assert found == wanted
