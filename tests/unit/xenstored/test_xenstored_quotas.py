"""What guests may not take."""

from xenstore_client import Client

from pyxen.abi.errno import E
from pyxen.proto import xs
from pyxen.xenstored.daemon import Xenstore


def test_nodes(xenstore: Xenstore, dom0: Client, guest: Client) -> None:
    xenstore.quotas.nodes = 10
    for n in range(9):
        guest.write(f"data/{n}")
    assert guest.refused(xs.Write("data/more", b"")) == E.NOSPC
    guest.rm("data/0")
    assert guest.refused(xs.Mkdir("data/a/b")) == E.NOSPC
    guest.write("data/more")
    for n in range(20):
        dom0.write(f"/h/{n}")
    assert guest.refused(xs.Write("data/over", b"")) == E.NOSPC


def test_nodes_in_transactions_are_counted_at_commit(xenstore: Xenstore, guest: Client) -> None:
    xenstore.quotas.nodes = 6
    one, two = guest.start(), guest.start()
    for n in range(3):
        guest.write(f"data/a{n}", tx=one)
        guest.write(f"data/b{n}", tx=two)
    assert guest.refused(xs.Write("data/a3/x/y", b""), one) == E.NOSPC
    guest.commit(one)
    assert guest.refused(xs.TransactionEnd(True), two) == E.NOSPC
    assert guest.ls("data") == ["a0", "a1", "a2"]


def test_size_counts_value_permissions_and_names(guest: Client, dom0: Client) -> None:
    guest.write("data/x", b"v" * 2000)
    assert guest.refused(xs.Write("data/x", b"v" * 2016)) == E.NOSPC
    assert guest.read("data/x") == b"v" * 2000
    assert guest.refused(xs.Write("data/" + "n" * 2020, b"")) == E.NOSPC
    dom0.write("/big", b"v" * 4000)


def test_watches(xenstore: Xenstore, guest: Client, dom0: Client) -> None:
    xenstore.quotas.watches = 3
    for n in range(3):
        guest.watch("data", str(n))
        dom0.watch("/", str(n))
    assert guest.refused(xs.Watch("data", "3")) == E.TOO_BIG
    dom0.watch("/", "3")
    guest.ask(xs.Unwatch("data", "0"))
    guest.watch("data", "3")


def test_transactions(guest: Client, dom0: Client) -> None:
    numbers = [guest.start() for _ in range(10)]
    assert len(set(numbers)) == 10
    assert guest.refused(xs.TransactionStart()) == E.NOSPC
    guest.commit(numbers[3])
    guest.start()
    assert len({dom0.start() for _ in range(30)}) == 30


def test_nodes_touched_in_a_transaction(xenstore: Xenstore, guest: Client, dom0: Client) -> None:
    xenstore.quotas.transaction_nodes = 5
    tx = guest.start()
    for n in range(4):
        guest.write("data/x", str(n), tx=tx)
    for n in range(3):
        guest.refused(xs.Read(f"data/{n}"), tx)
    assert guest.refused(xs.Read("data/9"), tx) == E.NOSPC
    assert guest.refused(xs.TransactionEnd(True), tx) == E.NOMEM
    tx = dom0.start()
    for n in range(50):
        dom0.write(f"/t/{n}", tx=tx)
    dom0.commit(tx)


def test_permissions(guest: Client, dom0: Client) -> None:
    guest.write("data/x")
    guest.chmod("data/x", "n5", "r1", "r2", "r3", "r4")
    assert guest.refused(xs.SetPerms("data/x", ("n5", "r1", "r2", "r3", "r4", "r6"))) == E.NOSPC
    dom0.chmod("/local/domain/5/data/x", "n5", *(f"r{n}" for n in range(10, 20)))


def test_owner_pays(xenstore: Xenstore, guest: Client, dom0: Client) -> None:
    def nodes() -> int:
        return xenstore.store.owned.get(5, 0)

    assert nodes() == 1
    dom0.write("/x/y")
    dom0.chmod("/x/y", "n5")
    assert nodes() == 2
    dom0.chmod("/x/y", "n0")
    assert nodes() == 1
    guest.write("data/a/b/c")
    assert nodes() == 4
    guest.rm("data/a")
    assert nodes() == 1


def test_quotas_can_be_read_and_set(dom0: Client, guest: Client) -> None:
    text = dom0.ask(xs.Control(("quota",))).decode()
    assert text.startswith("Quota settings:\nnodes            :     1000 ")
    dom0.ask(xs.Control(("quota", "set", "nodes", "1")))
    assert guest.refused(xs.Write("data/x", b"")) == E.NOSPC
    usage = dom0.ask(xs.Control(("quota", "5"))).decode()
    assert usage.startswith("Domain 5:\nnodes           :        1\n")
    for bad in (("set", "nodes", "0"), ("set", "nope", "1"), ("set", "nodes", "x"), ("a", "b")):
        assert dom0.refused(xs.Control(("quota", *bad))) == E.INVAL
    assert dom0.refused(xs.Control(("quota", "77"))) == E.NOENT


def test_other_controls(dom0: Client) -> None:
    assert b"quota" in dom0.ask(xs.Control(("help",)))
    assert dom0.ask(xs.Control(("check",))) == b"OK\0"
    assert dom0.ask(xs.Control(("print", "hello"))) == b"OK\0"
    assert dom0.ask(xs.Control(("log", "on"))) == b"OK\0"
    assert dom0.ask(xs.Control(("log", "off"))) == b"OK\0"
    assert dom0.refused(xs.Control(("live-update",))) == E.INVAL
