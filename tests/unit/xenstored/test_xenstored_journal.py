"""What was acknowledged survives the death of the process, and nothing else does."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from xenstore_client import Client, make_guest

from pyxen.abi.errno import E
from pyxen.errors import UserError, XenError
from pyxen.proto import xs
from pyxen.xenstored.daemon import Xenstore
from pyxen.xenstored.journal import Journal
from pyxen.xenstored.permissions import DOM0_ONLY
from pyxen.xenstored.records import DamagedRecord, Put, Removed, pack, unpack_all
from pyxen.xenstored.tree import walk


def everything(xenstore: Xenstore) -> object:
    """All that has to be the same after a restart."""
    nodes = [(path, n.value, n.perms) for path, n in walk(xenstore.store.root, "/")]
    domains = {
        d.domid: (
            d.mfn,
            d.port,
            d.connection.caller,
            [(w.path, w.token, w.depth, w.prefix) for w in xenstore.watches.of(d.connection)],
        )
        for d in xenstore.domains.values()
    }
    return nodes, xenstore.store.owned, domains, xenstore.quotas


def busy(xenstore: Xenstore) -> None:
    """A bit of everything that is recorded."""
    dom0 = Client(xenstore)
    guest = make_guest(xenstore, dom0, 5)
    make_guest(xenstore, dom0, 6)
    make_guest(xenstore, dom0, 7)
    guest.write("data/bin", bytes(range(256)))
    guest.watch("data", "a token with spaces \xff")
    guest.watch("/local", "absolute", 2)
    guest.watch("gone")
    guest.ask(xs.Unwatch("gone", "t"))
    dom0.watch("/", "of the host")
    tx = dom0.start()
    dom0.write("/t/1", "1", tx)
    dom0.rm("/local/domain/6/data", tx)
    dom0.write("/local/domain/6/data/again", "", tx)
    dom0.commit(tx)
    lost = dom0.start()
    dom0.write("/lost", "", lost)
    dom0.ask(xs.SetTarget(6, 5))
    dom0.chmod("@releaseDomain", "n0", "r5")
    dom0.ask(xs.Control(("quota", "set", "nodes", "77")))
    xenstore.release(7)
    dom0.rm("/tool")


def test_nothing_is_lost(journal_path: Path) -> None:
    first = Xenstore(journal_path)
    busy(first)
    # Not closed: a killed process doesn't close either.
    second = Xenstore(journal_path)
    assert everything(second) == everything(first)
    assert Client(second).refused(xs.Read("/lost")) == E.NOENT
    third = Xenstore(journal_path)
    assert everything(third) == everything(first)
    for xenstore in (first, second, third):
        xenstore.close()


def test_nothing_is_lost_by_compaction(journal_path: Path) -> None:
    first = Xenstore(journal_path)
    busy(first)
    assert first._journal is not None
    first._journal.compact(first.state())
    Client(first).write("/after", "compaction")
    second = Xenstore(journal_path)
    assert everything(second) == everything(first)
    assert second.epoch == first.epoch + 1
    first.close()
    second.close()


def test_journal_stays_in_proportion_to_the_state(journal_path: Path) -> None:
    xenstore = Xenstore(journal_path)
    dom0 = Client(xenstore)
    for n in range(1500):
        dom0.write("/same", bytes([n % 256]) * 4000)
    assert journal_path.stat().st_size < 1_200_000
    xenstore.close()
    again = Xenstore(journal_path)
    assert Client(again).read("/same") == bytes([1499 % 256]) * 4000
    again.close()
    assert [p.name for p in journal_path.parent.iterdir()] == [journal_path.name]


def test_torn_end_is_dropped_at_every_byte(journal_path: Path) -> None:
    xenstore = Xenstore(journal_path)
    dom0 = Client(xenstore)
    dom0.write("/kept", "1")
    whole = journal_path.stat().st_size
    dom0.write("/torn", "22")
    data = journal_path.read_bytes()
    xenstore.close()
    for size in range(whole, len(data)):
        journal_path.write_bytes(data[:size])
        again = Xenstore(journal_path)
        client = Client(again)
        assert client.read("/kept") == b"1"
        assert client.refused(xs.Read("/torn")) == E.NOENT
        client.write("/torn", "33")
        again.close()
        last = Xenstore(journal_path)
        assert Client(last).read("/torn") == b"33"
        last.close()
    assert [p.name for p in journal_path.parent.iterdir()] == [journal_path.name]


def test_damage_in_the_middle_keeps_a_copy(journal_path: Path) -> None:
    xenstore = Xenstore(journal_path)
    dom0 = Client(xenstore)
    dom0.write("/kept", "1")
    at = journal_path.stat().st_size
    dom0.write("/damaged", "2")
    dom0.write("/after", "3")
    xenstore.close()
    data = bytearray(journal_path.read_bytes())
    data[at + 12] ^= 1
    journal_path.write_bytes(data)
    again = Xenstore(journal_path)
    assert Client(again).read("/kept") == b"1"
    assert Client(again).refused(xs.Read("/after")) == E.NOENT
    again.close()
    assert Path(f"{journal_path}.damaged").read_bytes() == data


def test_half_made_snapshot_is_ignored(journal_path: Path) -> None:
    xenstore = Xenstore(journal_path)
    Client(xenstore).write("/a", "1")
    xenstore.close()
    Path(f"{journal_path}.new").write_bytes(b"half")
    again = Xenstore(journal_path)
    assert Client(again).read("/a") == b"1"
    again.close()


def test_foreign_file_is_refused_untouched(journal_path: Path) -> None:
    journal_path.write_bytes(b"something else")
    with pytest.raises(UserError):
        Xenstore(journal_path)
    assert journal_path.read_bytes() == b"something else"


def test_what_cannot_be_recorded_does_not_happen(
    journal_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    xenstore = Xenstore(journal_path)
    dom0 = Client(xenstore)
    guest = make_guest(xenstore, dom0, 5)
    dom0.watch("/")
    dom0.events()
    before = everything(xenstore)
    size = journal_path.stat().st_size
    real = os.pwrite

    def full(fd: int, data: bytes, offset: int) -> int:
        if len(data) <= 4:
            raise OSError(28, "No space left on device")
        return real(fd, data[:4], offset)

    monkeypatch.setattr(os, "pwrite", full)
    assert dom0.refused(xs.Write("/a", b"1")) == E.IO
    assert guest.refused(xs.Watch("data", "t")) == E.IO
    for action in (
        lambda: xenstore.introduce(9, 1, 1),
        lambda: xenstore.release(5),
        lambda: xenstore.set_target(5, 5),
    ):
        with pytest.raises(XenError):
            action()
    monkeypatch.undo()
    assert everything(xenstore) == before
    assert [m for m in dom0.received if m.op == xs.Op.WATCH_EVENT] == []
    assert journal_path.stat().st_size == size
    dom0.write("/a", "2")
    again = Xenstore(journal_path)
    assert everything(again) == everything(xenstore)
    again.close()
    xenstore.close()


def test_guest_goes_on_after_a_restart(journal_path: Path) -> None:
    first = Xenstore(journal_path)
    dom0 = Client(first)
    guest = make_guest(first, dom0, 5)
    guest.watch("data", "t")
    open_before = guest.start()
    guest.write("data/x", "half", open_before)

    second = Xenstore(journal_path)
    guest = Client(second, 5)
    # Events may have been lost with the old process.
    assert guest.events() == [("data", "t")]
    # The guest doesn't know that its transaction is gone; it finishes and is told to try again.
    guest.write("data/y", "rest", open_before)
    assert guest.read("data/y", open_before) == b"rest"
    assert guest.refused(xs.TransactionEnd(True), open_before) == E.AGAIN
    assert guest.refused(xs.Read("data/y")) == E.NOENT
    retry = guest.start()
    assert retry != open_before
    guest.write("data/x", "whole", retry)
    guest.commit(retry)
    abandoned = open_before + 1
    assert guest.ask(xs.TransactionEnd(False), abandoned) == b"OK\0"
    # Requests that were carried out but not answered are repeated.
    assert guest.ask(xs.Watch("data", "t")) == b"OK\0"
    assert guest.ask(xs.Unwatch("never", "t")) == b"OK\0"
    guest.events()
    Client(second).write("/local/domain/5/data/x", "host")
    assert guest.events() == [("data/x", "t")]
    # Host clients have no past.
    assert Client(second).refused(xs.Read("/"), open_before) == E.NOENT
    first.close()
    second.close()


def test_doomed_transactions_count(journal_path: Path) -> None:
    first = Xenstore(journal_path)
    guest = make_guest(first, Client(first), 5)
    old = guest.start()
    second = Xenstore(journal_path)
    guest = Client(second, 5)
    for n in range(10):
        guest.read("/local/domain/5", old + n)
    assert guest.refused(xs.Read("/local/domain/5"), old + 10) == E.NOSPC
    first.close()
    second.close()


def test_reattached_guest_is_told_of_its_watches_again() -> None:
    xenstore = Xenstore()
    guest = make_guest(xenstore, Client(xenstore), 5)
    guest.watch("data", "a")
    guest.watch("@releaseDomain", "b")
    again = Client(xenstore, 5)
    assert again.events() == [("data", "a"), ("@releaseDomain", "b")]


@pytest.mark.parametrize(
    "data",
    [b"P", b"P\x03", b"P\x01\xff\xff\xff\xff", b"Z\x00", b"E\x01\x01\0\0\0x"],
)
def test_bytes_that_are_no_record(data: bytes) -> None:
    with pytest.raises(DamagedRecord):
        unpack_all(data)


def test_removing_what_is_not_there_is_harmless(journal_path: Path) -> None:
    xenstore = Xenstore(journal_path)
    xenstore.close()
    journal = Journal(journal_path)
    list(journal.replay())
    journal.append(pack(Removed("/no/such/node")) + pack(Put("/x", b"1", DOM0_ONLY)))
    journal.close()
    again = Xenstore(journal_path)
    assert Client(again).read("/x") == b"1"
    again.close()


WRITER = """
import sys
from pathlib import Path
from pyxen.xenstored.daemon import Xenstore
from pyxen.xenstored.local import LocalClient

xenstore = Xenstore(Path(sys.argv[1]))
local = LocalClient(xenstore, lambda call: call())
n = 0
while True:
    with local.transaction() as tx:
        tx.write("/a/count", str(n))
        tx.write("/b/count", str(n))
        tx.write(f"/many/{n % 50}", "x" * (n % 3000))
    print(n, flush=True)
    n += 1
"""


@pytest.mark.parametrize("after", [1, 40, 900])
def test_killed_in_the_middle_of_writes(journal_path: Path, after: int) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, str(journal_path)], stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        for _ in range(after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        rest = process.stdout.read().split(b"\n")
    acknowledged = max([after - 1, *(int(n) for n in rest[:-1])])
    xenstore = Xenstore(journal_path)
    client = Client(xenstore)
    count = int(client.read("/a/count"))
    assert count in (acknowledged, acknowledged + 1)
    assert int(client.read("/b/count")) == count
    assert client.read(f"/many/{count % 50}") == b"x" * (count % 3000)
    xenstore.store.check()
    xenstore.close()
