"""Transactions: isolated, atomic, and in conflict only where they touch the same things."""

from pathlib import Path

import pytest
from xenstore_client import Client

from pyxen.abi.errno import E
from pyxen.proto import xs
from pyxen.xenstored.daemon import Xenstore


@pytest.fixture(autouse=True)
def content(dom0: Client) -> None:
    dom0.write("/a", "1")
    dom0.write("/b", "2")
    dom0.write("/d/x", "x")
    dom0.write("/d/y", "y")


def test_isolated_until_commit(xenstore: Xenstore, dom0: Client) -> None:
    other = Client(xenstore)
    tx = dom0.start()
    dom0.write("/a", "new", tx)
    dom0.rm("/d", tx)
    dom0.write("/n/m", "", tx)
    assert dom0.read("/a", tx) == b"new"
    assert dom0.refused(xs.Read("/d/x"), tx) == E.NOENT
    assert other.read("/a") == b"1"
    assert other.read("/d/x") == b"x"
    dom0.commit(tx)
    assert other.read("/a") == b"new"
    assert other.refused(xs.Read("/d/x")) == E.NOENT
    assert other.ls("/n") == ["m"]
    assert dom0.refused(xs.Read("/a"), tx) == E.NOENT


def test_abandoned(dom0: Client) -> None:
    tx = dom0.start()
    dom0.write("/a", "new", tx)
    assert dom0.ask(xs.TransactionEnd(False), tx) == b"OK\0"
    assert dom0.read("/a") == b"1"


def test_reads_a_snapshot(dom0: Client) -> None:
    tx = dom0.start()
    dom0.write("/a", "later")
    dom0.rm("/d")
    assert dom0.read("/a", tx) == b"1"
    assert dom0.ls("/d", tx) == ["x", "y"]
    dom0.commit(tx)
    assert dom0.read("/a") == b"later"


# What the transaction does, what somebody else does meanwhile, whether that is a conflict.
READ, WRITE, LS, RM, CHMOD, PERMS = xs.Read, xs.Write, xs.Directory, xs.Rm, xs.SetPerms, xs.GetPerms
CASES = [
    ([READ("/a")], WRITE("/b", b""), False),
    ([READ("/a")], WRITE("/a", b""), True),
    ([READ("/a")], WRITE("/a", b"1"), True),
    ([READ("/a")], RM("/a"), True),
    ([READ("/a")], CHMOD("/a", ("r0",)), True),
    ([READ("/a")], WRITE("/a/child", b""), False),
    ([PERMS("/a")], CHMOD("/a", ("r0",)), True),
    ([READ("/d/x")], RM("/d"), True),
    ([READ("/d/x")], WRITE("/d", b""), False),
    ([READ("/none")], WRITE("/none", b""), True),
    ([READ("/none")], WRITE("/nome", b""), False),
    ([READ("/none/deep")], WRITE("/none", b""), False),
    ([WRITE("/a", b"t")], WRITE("/a", b"o"), True),
    ([WRITE("/a", b"t")], WRITE("/b", b"o"), False),
    ([WRITE("/d/new1", b"")], WRITE("/d/new2", b""), False),
    ([WRITE("/d/new1", b"")], WRITE("/d/new1", b""), True),
    ([WRITE("/d/new1", b"")], RM("/d"), True),
    ([WRITE("/d/new1", b"")], CHMOD("/d", ("n3",)), True),
    ([WRITE("/n/e/w", b"")], WRITE("/n/e", b""), True),
    ([WRITE("/d/x", b"")], RM("/d/y"), False),
    ([LS("/d")], WRITE("/d/new", b""), True),
    ([LS("/d")], RM("/d/x"), True),
    ([LS("/d")], WRITE("/d/x", b"changed"), False),
    ([LS("/d")], WRITE("/d/x/below", b""), False),
    ([LS("/")], WRITE("/new", b""), True),
    ([RM("/d")], WRITE("/d/x", b"changed"), True),
    ([RM("/d")], WRITE("/d/x/y/z", b""), True),
    ([RM("/d/x")], WRITE("/d/y", b""), False),
    ([RM("/d/x")], WRITE("/d/z", b""), False),
    ([RM("/d/none")], WRITE("/d/none", b""), True),
    ([CHMOD("/a", ("r0",))], WRITE("/a", b""), True),
    ([CHMOD("/a", ("r0",))], WRITE("/a/c", b""), False),
]


@pytest.mark.parametrize(("mine", "theirs", "conflict"), CASES)
def test_conflicts_are_real(
    xenstore: Xenstore, dom0: Client, mine: list[xs.Request], theirs: xs.Request, conflict: bool
) -> None:
    other = Client(xenstore)
    tx = dom0.start()
    for request in mine:
        if request in (READ("/none"), READ("/none/deep")):
            assert dom0.refused(request, tx) == E.NOENT
        else:
            dom0.ask(request, tx)
    # Something of its own: a transaction that changes nothing never conflicts.
    dom0.write("/own", "", tx)
    other.ask(theirs)
    if conflict:
        assert dom0.refused(xs.TransactionEnd(True), tx) == E.AGAIN
        assert other.refused(xs.Read("/own")) == E.NOENT
    else:
        dom0.commit(tx)
        assert other.read("/own") == b""
        xenstore.store.check()


def test_commits_conflict_with_each_other(dom0: Client) -> None:
    one, two = dom0.start(), dom0.start()
    for tx in (one, two):
        dom0.write("/counter", str(len(dom0.read("/a", tx)) + tx), tx)
    dom0.commit(one)
    assert dom0.refused(xs.TransactionEnd(True), two) == E.AGAIN
    assert dom0.read("/counter") == str(one + 1).encode()


def test_merge_keeps_both_sides(xenstore: Xenstore, dom0: Client) -> None:
    tx = dom0.start()
    dom0.rm("/d/x", tx)
    dom0.write("/d/x/again", "mine", tx)
    dom0.write("/d/z", "mine", tx)
    dom0.chmod("/a", "n0", "r9", tx=tx)
    dom0.write("/b", "theirs")
    dom0.write("/d/y", "theirs")
    dom0.write("/d/w", "theirs")
    dom0.commit(tx)
    assert dom0.ls("/d") == ["w", "x", "y", "z"]
    assert dom0.read("/d/x") == b""
    assert dom0.read("/d/x/again") == b"mine"
    assert dom0.read("/d/y") == b"theirs"
    assert dom0.read("/b") == b"theirs"
    assert dom0.perms("/a") == ["n0", "r9"]


def test_what_was_written_and_removed_again_does_not_come_back(
    journal_path: Path,
) -> None:
    first = Xenstore(journal_path)
    client = Client(first)
    client.write("/d/x")
    tx = client.start()
    client.write("/d/new/below", "", tx)
    client.rm("/d/new", tx)
    client.write("/d/x/y", "", tx)
    client.rm("/d/x", tx)
    client.write("/d/x", "fresh", tx)
    client.write("/elsewhere")
    client.commit(tx)
    second = Xenstore(journal_path)
    for xenstore in (first, second):
        client = Client(xenstore)
        assert client.ls("/d") == ["x"]
        assert client.ls("/d/x") == []
        assert client.read("/d/x") == b"fresh"
        xenstore.close()


def test_numbers(dom0: Client, xenstore: Xenstore) -> None:
    assert dom0.refused(xs.Read("/a"), 12345) == E.NOENT
    assert dom0.refused(xs.TransactionEnd(True)) == E.NOENT
    assert dom0.refused(xs.TransactionEnd(True), 12345) == E.NOENT
    tx = dom0.start()
    assert dom0.refused(xs.TransactionStart(), tx) == E.BUSY
    other = Client(xenstore)
    assert other.refused(xs.Read("/a"), tx) == E.NOENT
    dom0.ask(xs.ResetWatches())
    assert dom0.refused(xs.Read("/a"), tx) == E.NOENT


def test_a_failed_request_leaves_the_transaction_usable(dom0: Client) -> None:
    tx = dom0.start()
    dom0.write("/own", "1", tx)
    assert dom0.refused(xs.Rm("/x/y"), tx) == E.NOENT
    assert dom0.refused(xs.Write("/bad//path", b""), tx) == E.INVAL
    dom0.commit(tx)
    assert dom0.read("/own") == b"1"
