"""Watches: who is told of what, when, and in which form."""

import pytest
from xenstore_client import Client, make_guest

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.xenstored.daemon import Xenstore


def test_first_event_follows_the_answer(dom0: Client) -> None:
    dom0.watch("/not/there", "token")
    assert [m.op for m in dom0.received] == [xs.Op.WATCH, xs.Op.WATCH_EVENT]
    assert dom0.events() == [("/not/there", "token")]


def test_events_precede_the_answer_to_the_write_that_caused_them(dom0: Client) -> None:
    dom0.watch("/a")
    dom0.events()
    dom0.write("/a")
    assert [m.op for m in dom0.received] == [xs.Op.WATCH_EVENT, xs.Op.WRITE]


def test_changes_below_are_told_with_their_own_path(dom0: Client, xenstore: Xenstore) -> None:
    watcher = Client(xenstore)
    watcher.watch("/a/b")
    watcher.events()
    dom0.write("/a/b/c/d")
    dom0.write("/a/b", "v")
    dom0.write("/a", "v")
    dom0.write("/a/bc", "v")
    dom0.ask(xs.Mkdir("/a/b/m"))
    dom0.ask(xs.Mkdir("/a/b/m"))
    dom0.chmod("/a/b/m", "n0", "r1")
    dom0.read("/a/b")
    assert watcher.events() == [
        ("/a/b/c/d", "t"),
        ("/a/b", "t"),
        ("/a/b/m", "t"),
        ("/a/b/m", "t"),
    ]


def test_the_root_sees_everything(dom0: Client, xenstore: Xenstore) -> None:
    watcher = Client(xenstore)
    watcher.watch("/")
    watcher.events()
    dom0.write("/a/b")
    dom0.rm("/a")
    assert watcher.events() == [("/a/b", "t"), ("/a", "t")]


def test_removal_tells_every_watched_node_below_once(dom0: Client, xenstore: Xenstore) -> None:
    for path in ("/a/b/c", "/a/b/d"):
        dom0.write(path)
    watcher = Client(xenstore)
    for path in ("/", "/a", "/a/b", "/a/b/c", "/a/b/x"):
        watcher.watch(path, path)
    watcher.events()
    dom0.rm("/a/b")
    assert watcher.events() == [
        ("/a/b/c", "/a/b/c"),
        ("/a/b", "/"),
        ("/a/b", "/a"),
        ("/a/b", "/a/b"),
    ]
    dom0.rm("/a/b")
    assert watcher.events() == []


def test_relative_watches_are_told_relative_paths(dom0: Client, guest: Client) -> None:
    guest.watch("data", "rel")
    guest.watch("/local/domain/5/data", "abs")
    assert guest.events() == [("data", "rel"), ("/local/domain/5/data", "abs")]
    dom0.write("/local/domain/5/data/x")
    assert guest.events() == [("data/x", "rel"), ("/local/domain/5/data/x", "abs")]


def test_depth(dom0: Client) -> None:
    for depth in range(3):
        dom0.watch("/a", str(depth), depth)
        dom0.watch("/", f"root{depth}", depth)
    dom0.events()
    dom0.write("/a/b")
    assert dom0.events() == [("/a/b", "1"), ("/a/b", "2"), ("/a/b", "root2")]
    dom0.write("/a", "v")
    told = [t for _, t in dom0.events()]
    assert told == ["0", "1", "root1", "2", "root2"]


def test_the_same_watch_twice(dom0: Client, guest: Client) -> None:
    dom0.watch("/a", "t")
    assert dom0.refused(xs.Watch("/a", "t")) == E.EXIST
    dom0.watch("/a", "u")
    guest.watch("data", "t")
    assert guest.refused(xs.Watch("/local/domain/5/data", "t")) == E.EXIST


def test_unwatch_and_reset(dom0: Client, xenstore: Xenstore) -> None:
    dom0.watch("/a", "t")
    assert dom0.refused(xs.Unwatch("/a", "u")) == E.NOENT
    assert dom0.refused(xs.Unwatch("/b", "t")) == E.NOENT
    dom0.ask(xs.Unwatch("/a", "t"))
    dom0.watch("/b", "t")
    dom0.watch("/c", "t")
    dom0.ask(xs.ResetWatches())
    dom0.events()
    for path in ("/a", "/b", "/c"):
        dom0.write(path)
    assert dom0.events() == []
    assert xenstore.watches.count(dom0.connection) == 0


def test_transaction_is_told_once_and_only_at_commit(dom0: Client, xenstore: Xenstore) -> None:
    watcher = Client(xenstore)
    watcher.watch("/a")
    watcher.events()
    tx = dom0.start()
    dom0.write("/a/1", "x", tx)
    dom0.write("/a/2", "x", tx)
    dom0.write("/a/1", "y", tx)
    dom0.write("/a/gone", "y", tx)
    dom0.rm("/a/gone", tx)
    assert watcher.events() == []
    dom0.commit(tx)
    assert watcher.events() == [("/a/1", "t"), ("/a/2", "t"), ("/a/gone", "t")]
    tx = dom0.start()
    dom0.write("/a/3", "x", tx)
    dom0.ask(xs.TransactionEnd(False), tx)
    assert watcher.events() == []


def test_who_could_not_read_is_not_told(dom0: Client, guest: Client) -> None:
    dom0.write("/secret/x")
    guest.watch("/", "t")
    guest.watch("/secret", "t")
    guest.events()
    dom0.write("/secret/x", "v")
    dom0.write("/secret/y", "v")
    dom0.rm("/secret/x")
    assert guest.events() == []


def test_losing_and_gaining_access_is_told(dom0: Client, guest: Client) -> None:
    dom0.write("/n/x")
    guest.watch("/n/x", "t")
    guest.events()
    dom0.chmod("/n/x", "n0", "r5")
    assert guest.events() == [("/n/x", "t")]
    dom0.chmod("/n/x", "n0")
    assert guest.events() == [("/n/x", "t")]
    dom0.write("/n/x", "now hidden")
    assert guest.events() == []
    dom0.chmod("/n", "n0", "r5")
    guest.events()
    dom0.rm("/n/x")
    assert guest.events() == [("/n/x", "t")]


def test_losing_access_in_a_transaction_is_told(dom0: Client, guest: Client) -> None:
    dom0.write("/n/x")
    dom0.chmod("/n/x", "n0", "r5")
    guest.watch("/n/x", "t")
    guest.events()
    tx = dom0.start()
    dom0.chmod("/n/x", "n0", tx=tx)
    dom0.write("/n/x", "hidden", tx)
    dom0.commit(tx)
    assert guest.events() == [("/n/x", "t")]


def test_removal_of_a_readable_node_is_told(dom0: Client, guest: Client) -> None:
    dom0.write("/n/x")
    dom0.chmod("/n/x", "n0", "r5")
    guest.watch("/n/x", "t")
    guest.events()
    dom0.rm("/n")
    assert guest.events() == [("/n/x", "t")]


# --- domains ---


def test_introduce_and_release_are_told(dom0: Client, xenstore: Xenstore) -> None:
    dom0.watch("@introduceDomain", "i")
    dom0.watch("@releaseDomain", "r")
    assert dom0.events() == [("@introduceDomain", "i"), ("@releaseDomain", "r")]
    xenstore.introduce(7, 1, 1)
    assert dom0.events() == [("@introduceDomain", "i")]
    xenstore.introduce(7, 2, 1)
    assert dom0.events() == []
    xenstore.notify_shutdown(7)
    xenstore.notify_shutdown(7)
    assert dom0.events() == [("@releaseDomain", "r")]
    dom0.ask(xs.Resume(7))
    dom0.events()
    xenstore.notify_shutdown(7)
    assert dom0.events() == [("@releaseDomain", "r")]
    xenstore.release(7)
    assert dom0.events() == [("@releaseDomain", "r")]


def test_special_watch_with_depth_names_the_domain(dom0: Client, xenstore: Xenstore) -> None:
    dom0.watch("@releaseDomain", "which", 1)
    dom0.watch("@releaseDomain/8", "eight")
    dom0.events()
    for domid in (7, 8):
        xenstore.introduce(domid, 1, 1)
        xenstore.release(domid)
    assert dom0.events() == [
        ("@releaseDomain/7", "which"),
        ("@releaseDomain/8", "which"),
        ("@releaseDomain/8", "eight"),
    ]


def test_guests_learn_of_domains_only_if_allowed(
    dom0: Client, guest: Client, xenstore: Xenstore
) -> None:
    guest.watch("@releaseDomain", "r")
    guest.events()
    xenstore.introduce(7, 1, 1)
    xenstore.release(7)
    assert guest.events() == []
    assert guest.refused(xs.SetPerms("@releaseDomain", ("n0", "r5"))) == E.ACCES
    dom0.chmod("@releaseDomain", "n0", "r5")
    assert dom0.perms("/@releaseDomain") == ["n0", "r5"]
    guest.events()
    xenstore.introduce(7, 1, 1)
    xenstore.release(7)
    assert guest.events() == [("@releaseDomain", "r")]
    assert dom0.refused(xs.SetPerms("@nonsense", ("n0",))) == E.INVAL


def test_release_takes_everything_of_the_domain(
    dom0: Client, guest: Client, xenstore: Xenstore
) -> None:
    make_guest(xenstore, dom0, 6)
    guest.write("data/x")
    dom0.write("/backend/5", "v")
    dom0.chmod("/backend/5", "n0", "r5", "r6")
    dom0.write("/given")
    dom0.chmod("/given", "n5")
    dom0.write("/given/below")
    guest.watch("data")
    tx = guest.start()
    xenstore.release(5)
    assert dom0.ls("/local/domain/5") == []
    assert dom0.perms("/local/domain/5") == ["n0"]
    assert dom0.perms("/backend/5") == ["n0", "r6"]
    assert dom0.refused(xs.Read("/given/below")) == E.NOENT
    assert 5 not in xenstore.store.owned
    assert xenstore.watches.count(guest.connection) == 0
    assert dom0.ask(xs.IsDomainIntroduced(5)) == b"F\0"
    xenstore.introduce(5, 1, 1)
    again = Client(xenstore, 5)
    assert again.refused(xs.TransactionEnd(True), tx) == E.NOENT
    assert again.refused(xs.Read("/backend/5")) == E.ACCES


def test_domain_requests_on_the_wire(xenstore: Xenstore, dom0: Client, guest: Client) -> None:
    assert dom0.ask(xs.GetDomainPath(12)) == b"/local/domain/12\0"
    assert guest.ask(xs.GetDomainPath(5)) == b"/local/domain/5\0"
    assert dom0.ask(xs.IsDomainIntroduced(0)) == b"T\0"
    assert dom0.ask(xs.IsDomainIntroduced(xs.DOMID_SELF)) == b"T\0"
    assert dom0.ask(xs.IsDomainIntroduced(5)) == b"T\0"
    assert dom0.ask(xs.IsDomainIntroduced(12)) == b"F\0"
    assert dom0.refused(xs.Release(12)) == E.NOENT
    assert dom0.refused(xs.Release(0)) == E.INVAL
    assert dom0.refused(xs.Resume(12)) == E.NOENT
    assert dom0.refused(xs.Introduce(0, 1, 1)) == E.INVAL
    assert dom0.refused(xs.Introduce(0x7FF1, 1, 1)) == E.INVAL
    guest.watch("data")
    dom0.ask(xs.Introduce(5, 0x2002, 9))
    assert xenstore.watches.count(guest.connection) == 0
    dom0.ask(xs.Introduce(12, 0x2002, 9))
    assert (xenstore.domains[12].mfn, xenstore.domains[12].port) == (0x2002, 9)
    dom0.ask(xs.Release(12))
    assert 12 not in xenstore.domains


def test_hooks_see_and_may_refuse_wire_requests() -> None:
    seen: list[tuple[int, ...]] = []

    def introduce(domid: int, mfn: int, port: int) -> None:
        seen.append((domid, mfn, port))
        if domid == 9:
            raise XenError(E.BUSY)

    xenstore = Xenstore(on_introduce=introduce, on_release=lambda domid: seen.append((domid,)))
    dom0 = Client(xenstore)
    dom0.ask(xs.Introduce(8, 7, 6))
    assert dom0.refused(xs.Introduce(9, 7, 6)) == E.BUSY
    assert list(xenstore.domains) == [8]
    dom0.ask(xs.Release(8))
    xenstore.introduce(8, 7, 6)
    assert seen == [(8, 7, 6), (9, 7, 6), (8,)]


@pytest.mark.parametrize("path", ["/a//b", "", "@" + "x" * 2048, "/ä"])
def test_bad_watch_paths(dom0: Client, path: str) -> None:
    assert dom0.refused(xs.Watch(path, "t")) == E.INVAL
