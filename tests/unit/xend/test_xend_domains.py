"""Domains come, end and go; nothing stays behind; xend may be killed at any time."""

import os
import select
import signal
import socket
import threading

import pytest
from xend_harness import Host, config, processes

from pyxen.errors import UserError

XS_CLIENT_PATHS = ("/local/domain/{}", "/libxl/{}", "/local/domain/0/backend/console/{}")


def store(host):
    """Every node of xenstore, by way of the wire protocol."""
    from pyxen.paths import connect_unix
    from pyxen.proto import xs

    with connect_unix(host.paths.xenstored_socket) as sock:
        stream = xs.MessageStream()

        def ask(request):
            sock.sendall(xs.request_message(request, 1).pack())
            while True:
                stream.feed(sock.recv(4096))
                for message in stream:
                    assert message.op != xs.Op.ERROR, message
                    return message.payload

        def walk(path):
            children = ask(xs.Directory(path)).decode().split("\0")[:-1]
            found = {path: ask(xs.Read(path)).decode()}
            for child in children:
                found.update(walk(f"{path.rstrip('/')}/{child}"))
            return found

        return walk("/")


def gone(host, domid):
    """Whether nothing at all is left of a domain, besides its logs."""
    nodes = store(host)
    return (
        not any(path.format(domid) in nodes for path in XS_CLIENT_PATHS)
        and not host.paths.domain_dir(domid).exists()
        and not host.paths.domain_run(domid).exists()
        and domid not in [entry["domid"] for entry in host.call("list")]
    )


def wait(host, domid):
    return host.call("wait", domain=domid)


def test_a_domain_is_made_and_destroyed(host):
    domid = host.create("d1", paused=True)
    entry = host.entry(domid)
    assert (entry["name"], entry["state"]["paused"]) == ("d1", True)
    pid = host.record(domid)["pid"]
    host.call("destroy", domain="d1")
    assert gone(host, domid)
    assert not os.path.exists(f"/proc/{pid}")


def test_domids_are_not_reused(host):
    first = host.create("d1")
    host.call("destroy", domain=first)
    assert host.create("d1") == first + 1
    host.kill()
    host.start()
    assert host.create("d2") == first + 2


def test_a_taken_name_burns_no_domid(host):
    first = host.create("d1")
    for name in ("d1", "Domain-0"):
        with pytest.raises(UserError, match="exists already") as refused:
            host.create(name)
        assert refused.value.exit_code == 3
    assert host.create("d2") == first + 1


def test_a_taken_uuid_is_refused(host):
    uuid = "11111111-2222-3333-4444-555555555555"
    host.create("d1", uuid=uuid)
    with pytest.raises(UserError, match="belongs to 'd1'"):
        host.create("d2", uuid=uuid)
    assert host.names() == ["d1"]


@pytest.mark.parametrize(
    ("cmdline", "message"), [("refuse", "no such kernel"), ("die", "this is why it died")]
)
def test_a_failed_creation_leaves_nothing(host, cmdline, message):
    before = store(host)
    with pytest.raises(UserError) as failed:
        host.create("d1", cmdline)
    assert message in f"{failed.value.message} {failed.value.hint}"
    assert failed.value.exit_code == 3
    assert gone(host, 1)
    assert store(host) == before
    assert len(processes(host.home)) == 1


def test_a_client_that_leaves_cancels_its_creation(host):
    with host.client() as events:
        events.call("events")
        with host.client() as xend:
            xend.send("create", config=config("d1", "hang"))
            while not host.records() or not host.records()[0]["pid"]:
                host.call("version")
            pid = host.records()[0]["pid"]
        fd = os.pidfd_open(pid)
        signal.pidfd_send_signal(fd, 0)

        assert select.select([fd], [], [], 30)[0]
        os.close(fd)
    while host.names():
        pass
    assert gone(host, 1)


def test_pauses_are_counted(host):
    domid = host.create("d1", paused=True)
    host.call("pause", domain=domid)
    host.call("unpause", domain=domid)
    assert host.entry(domid)["state"]["paused"]
    host.call("unpause", domain=domid)
    assert host.entry(domid)["state"]["blocked"]


def test_shutdown_goes_through_xenstore_and_destroys(host):
    domid = host.create("d1")
    with host.client() as waiter:
        number = waiter.send("wait", domain=domid)
        host.call("shutdown", domain="d1")
        answer = next(waiter.messages())
    assert answer["id"] == number
    assert answer["result"]["reason"] == "poweroff"
    assert gone(host, domid)


def test_a_paused_guest_cannot_shut_down(host):
    host.create("d1", paused=True)
    with pytest.raises(UserError, match="is paused"):
        host.call("shutdown", domain="d1")
    assert store(host)["/local/domain/1/control/shutdown"] == ""


def test_reboot_starts_it_again_under_a_new_domid(host):
    domid = host.create("d1", on_reboot="restart")
    with host.client() as waiter:
        waiter.send("wait", domain=domid)
        host.call("shutdown", domain="d1", request="reboot")
        result = next(waiter.messages())["result"]
    assert result["successor"] == domid + 1
    assert host.entry("d1")["domid"] == domid + 1
    assert gone(host, domid)
    assert f"/vm/{config('d1')['c_info']['uuid']}/name" in store(host)


@pytest.mark.parametrize("reason", ["poweroff", "crash", "watchdog"])
def test_preserve_keeps_what_is_left(host, reason):
    domid = host.create("d1", f"end={reason}", **{f"on_{reason}": "preserve"})
    result = wait(host, domid)
    assert (result["destroyed"], result["reason"]) == (False, reason)
    entry = host.entry(domid)
    assert (entry["state"]["shutdown"], entry["shutdown_reason"]) == (True, reason)
    with pytest.raises(UserError, match="has shut down already"):
        host.call("shutdown", domain=domid)
    host.call("destroy", domain=domid)
    assert gone(host, domid)


def test_restart_rename_keeps_the_old_one_under_another_name(host):
    domid = host.create("d1", on_crash="restart_rename")
    with host.client() as waiter:
        waiter.send("wait", domain=domid)
        type_line(host, domid, b"end crash")
        result = next(waiter.messages())["result"]
    old, new = host.names()
    assert old.startswith("d1-2") and old.endswith("Z") and new == "d1"
    assert result["successor"] == host.entry("d1")["domid"] == domid + 1
    assert host.entry(domid)["shutdown_reason"] == "crash"
    host.call("destroy", domain=domid)
    assert store(host)[f"/vm/{host.entry('d1')['uuid']}/name"] == "d1"


def type_line(host, domid, line):
    from pyxen.xl.console import open_console

    where = host.call("console", domain=domid)["socket"]
    with open_console(where, 0) as sock:
        sock.sendall(line + b"\n")


def test_a_guest_that_ends_at_once_is_not_restarted_for_ever(host):
    host.create("d1", "end=crash", on_crash="restart")
    with host.client() as xend:
        while "not started again" not in xend.call("dmesg"):
            pass
    assert host.names() == []


def test_a_killed_domain_process_is_a_crash(host):
    domid = host.create("d1")
    with host.client() as waiter:
        waiter.send("wait", domain=domid)
        os.kill(host.record(domid)["pid"], signal.SIGKILL)
        result = next(waiter.messages())["result"]
    assert (result["reason"], result["destroyed"]) == ("crash", True)
    assert gone(host, domid)


def test_rename(host):
    domid = host.create("d1")
    host.create("d2")
    with pytest.raises(UserError, match="exists already"):
        host.call("rename", domain="d1", name="d2")
    host.call("rename", domain="d1", name="a b/c")
    assert host.entry("a b/c")["domid"] == domid
    nodes = store(host)
    assert nodes[f"/local/domain/{domid}/name"] == "a b/c"
    assert nodes[f"/vm/{host.entry(domid)['uuid']}/name"] == "a b/c"


def test_domains_outlive_xend_and_are_adopted(host):
    domid = host.create("d1")
    host.create("d2", paused=True)
    before = store(host)
    pid = host.record(domid)["pid"]
    host.kill()
    assert os.path.exists(f"/proc/{pid}")
    host.start()
    assert store(host) == before
    assert host.names() == ["d1", "d2"]
    assert host.entry(domid)["state"]["blocked"]
    with host.client() as waiter:
        waiter.send("wait", domain=domid)
        host.call("shutdown", domain=domid)
        assert next(waiter.messages())["result"]["reason"] == "poweroff"
    assert gone(host, domid)


def test_an_orderly_stop_leaves_domains_running(host):
    domid = host.create("d1")
    host.stop()
    assert not host.paths.xend_socket.exists()
    host.start()
    assert host.entry(domid)["state"]["blocked"]


def test_what_died_while_xend_was_dead_is_cleaned_up(host):
    dead, down = host.create("d1"), host.create("d2", on_poweroff="destroy")
    restarting = host.create("d3", on_crash="restart")
    host.kill()
    for domid in (dead, restarting):
        os.kill(host.record(domid)["pid"], signal.SIGKILL)
    socket_path = host.paths.domain_run(down) / "control.sock"
    from pyxen.xl.console import open_console

    with open_console(str(socket_path), 0) as sock:
        sock.sendall(b"end poweroff\n")
        received = b""
        while b"guest: poweroff" not in received:
            received += sock.recv(4096)
    host.start()
    with host.client() as xend:
        while {e["name"] for e in xend.call("list")[1:]} != {"d3"} or xend.call("list")[1][
            "domid"
        ] == restarting:
            pass
    assert gone(host, dead) and gone(host, down) and gone(host, restarting)


def test_a_creation_cut_short_by_a_kill_is_rolled_back(host):
    with host.client() as xend:
        xend.send("create", config=config("d1", "hang"))
        while not host.records() or not host.records()[0]["pid"]:
            host.call("version")
        host.kill()
    pid = host.records()[0]["pid"]
    host.start()
    while host.names():
        pass
    assert gone(host, 1)
    assert pid not in processes(host.home)


def test_one_xend_per_state_directory(host):
    second = Host(host.home)
    with pytest.raises(AssertionError, match="runs already"):
        second.start()
    second.process.wait()
    assert host.names() == []


def test_a_long_path_works(tmp_path):
    home = tmp_path / ("deep" * 40) / "h"
    host = Host(home).start()
    try:
        domid = host.create("d1")
        assert host.entry("d1")["domid"] == domid
        host.call("destroy", domain=domid)
    finally:
        host.close()


def test_a_client_that_does_not_read_is_cut_off(host):
    host.create("d1")
    with host.client() as deaf, pytest.raises(UserError, match="lost the connection"):
        while True:
            deaf.send("config")
    assert host.names() == ["d1"]


def test_nonsense_is_answered_or_cut_off(host):
    from pyxen.paths import connect_unix

    with connect_unix(host.paths.xend_socket) as sock:
        sock.sendall(b'{"id": 1, "v": 99, "op": "list"}\n[1]\n{"id": 2}\nnonsense\n')
        reader = sock.makefile("rb")
        for _ in range(4):
            assert b'"error"' in reader.readline()
        reader.close()
    with connect_unix(host.paths.xend_socket) as sock, pytest.raises(OSError):
        while True:
            sock.sendall(b"x" * 65536)
            if not sock.recv(1, socket.MSG_DONTWAIT):
                raise BrokenPipeError
    assert host.names() == []


def test_many_at_once(host):
    threads = [threading.Thread(target=host.create, args=(f"d{n}",)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(host.names()) == [f"d{n}" for n in range(6)]
    with host.client() as xend:
        asked = {xend.send("destroy", domain=f"d{n}") for n in range(6)}
        for message in xend.messages():
            asked.discard(message["id"])
            assert "result" in message
            if not asked:
                break
    assert host.names() == []


@pytest.fixture
def spare_host(home):
    host = Host(home, spare=True).start()
    yield host
    host.close()


def spare_of(host):
    """The pid of the waiting process: the one that is neither xend nor a domain."""
    known = {host.process.pid, *(record["pid"] for record in host.records())}
    while not (others := set(processes(host.home)) - known):
        # It has been started, but its environment is not in place yet.
        pass
    (pid,) = others
    return pid


def test_a_spare_process_becomes_the_domain(spare_host):
    host = spare_host
    spare = spare_of(host)
    domid = host.create("d1")
    assert host.record(domid)["pid"] == spare
    assert (host.paths.domain_logs("d1") / str(domid) / "domain.log").exists()
    host.create("d2")
    host.call("destroy", domain="d1")
    host.stop()
    assert list((host.paths.state / "logs").glob(".spare*")) == []


def test_a_dead_spare_is_no_loss(spare_host):
    os.kill(spare_of(spare_host), signal.SIGKILL)
    spare_host.create("d1")
    assert spare_host.names() == ["d1"]


def test_the_spare_ends_with_xend(spare_host):
    fd = os.pidfd_open(spare_of(spare_host))
    spare_host.kill()
    assert select.select([fd], [], [], 30)[0]
    os.close(fd)


def test_a_process_that_hangs_is_killed_by_destroy(host):
    domid = host.create("d1")
    pid = host.record(domid)["pid"]
    os.kill(pid, signal.SIGSTOP)
    assert host.entry(domid)["name"] == "d1"
    host.call("destroy", domain=domid)
    assert gone(host, domid)
    assert pid not in processes(host.home)
