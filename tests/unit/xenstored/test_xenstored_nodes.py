"""Nodes through the wire: values, children, permissions."""

import pytest
from xenstore_client import Client, make_guest

from pyxen.abi.errno import E
from pyxen.proto import xs
from pyxen.xenstored.daemon import Xenstore


def test_fresh_store_has_the_nodes_of_a_real_one(dom0: Client) -> None:
    assert dom0.ls("/") == ["@introduceDomain", "@releaseDomain", "tool"]
    assert dom0.perms("/@releaseDomain") == ["n0"]
    assert dom0.ls("/tool") == ["xenstored"]


def test_write_creates_parents_with_empty_values(dom0: Client) -> None:
    dom0.write("/a/b/c", b"\0binary\xff")
    assert dom0.read("/a/b/c") == b"\0binary\xff"
    assert dom0.read("/a/b") == b""
    dom0.write("/a/b", "kept")
    assert dom0.read("/a/b/c") == b"\0binary\xff"


def test_mkdir_leaves_values_alone(dom0: Client) -> None:
    dom0.write("/a", "v")
    assert dom0.ask(xs.Mkdir("/a")) == b"OK\0"
    assert dom0.read("/a") == b"v"
    dom0.ask(xs.Mkdir("/a/b/c"))
    assert dom0.ls("/a/b") == ["c"]


def test_children_are_listed_in_order(dom0: Client) -> None:
    for name in ("9", "10", "b", "a"):
        dom0.write(f"/d/{name}")
    assert dom0.ls("/d") == ["10", "9", "a", "b"]
    assert dom0.ls("/d/a") == []


def test_rm(dom0: Client) -> None:
    dom0.write("/a/b/c/d", "v")
    dom0.rm("/a/b")
    assert dom0.refused(xs.Read("/a/b/c/d")) == E.NOENT
    assert dom0.ls("/a") == []
    dom0.rm("/a/b")
    assert dom0.refused(xs.Rm("/x/y")) == E.NOENT
    assert dom0.refused(xs.Rm("/")) == E.INVAL


def test_missing_nodes(dom0: Client) -> None:
    chmod = xs.SetPerms("/x", ("n0",))
    for request in (xs.Read("/x"), xs.Directory("/x"), xs.GetPerms("/x"), chmod):
        assert dom0.refused(request) == E.NOENT


def test_host_clients_have_relative_paths_too(dom0: Client) -> None:
    dom0.write("name", "Domain-0")
    assert dom0.read("/local/domain/0/name") == b"Domain-0"


@pytest.mark.parametrize("path", ["", "/a/", "//", "a b", "/" + "x" * 3072, "@releaseDomain"])
def test_bad_paths(dom0: Client, path: str) -> None:
    for request in (xs.Read(path), xs.Write(path, b""), xs.Rm(path), xs.Mkdir(path)):
        assert dom0.refused(request) == E.INVAL


def test_a_thousand_levels(dom0: Client, xenstore: Xenstore) -> None:
    path = "/a" * 1000
    dom0.write(path, "deep")
    assert dom0.read(path) == b"deep"
    dom0.watch(path)
    dom0.events()
    dom0.rm("/a")
    assert dom0.events() == [(path, "t")]
    xenstore.store.check()


def test_long_listings_come_in_parts(dom0: Client) -> None:
    names = sorted(f"{n:04}-{'x' * (n % 50)}" for n in range(700))
    for name in names:
        dom0.write(f"/d/{name}")
    assert dom0.refused(xs.Directory("/d")) == E.TOO_BIG

    def part(offset: int) -> tuple[str, bytes]:
        generation, _, rest = dom0.ask(xs.DirectoryPart("/d", offset)).partition(b"\0")
        return generation.decode(), rest

    got = b""
    first, rest = part(0)
    while not (rest == b"\0" or rest.endswith(b"\0\0")):
        got += rest
        generation, rest = part(len(got))
        assert generation == first
    got += rest[:-1]
    assert xs.split_strings(got) == names
    assert part(len(got)) == (first, b"\0")
    dom0.write("/d/0000-", "a value is no child")
    assert part(0)[0] == first
    dom0.rm("/d/0000-")
    assert part(0)[0] != first


def test_part_of_an_empty_directory(dom0: Client) -> None:
    dom0.write("/d")
    assert dom0.ask(xs.DirectoryPart("/d", 0)).endswith(b"\0\0")


# --- permissions ---


def test_new_nodes_inherit_but_guests_own_what_they_create(dom0: Client, guest: Client) -> None:
    dom0.chmod("/local/domain/5/data", "n5", "r7")
    guest.write("data/sub/leaf", "v")
    assert dom0.perms("/local/domain/5/data/sub") == ["n5", "r7"]
    dom0.write("/local/domain/5/data/host", "v")
    assert dom0.perms("/local/domain/5/data/host") == ["n5", "r7"]
    dom0.write("/shared")
    dom0.chmod("/shared", "r0", "b5")
    guest.write("/shared/mine")
    assert dom0.perms("/shared/mine") == ["r5", "b5"]


def test_guest_reads_its_home_and_writes_only_where_it_may(guest: Client) -> None:
    assert guest.ls("/local/domain/5") == ["data"]
    assert guest.refused(xs.Write("name", b"x")) == E.ACCES
    guest.write("data/x", "1")
    assert guest.read("data/x") == b"1"
    guest.rm("data/x")


@pytest.mark.parametrize(
    ("perms", "readable", "writable"),
    [
        (("n0",), False, False),
        (("r0",), True, False),
        (("w0",), False, True),
        (("b0",), True, True),
        (("b0", "n5"), False, False),
        (("n0", "r5"), True, False),
        (("n0", "w5"), False, True),
        (("n0", "b5"), True, True),
        (("n0", "r6"), False, False),
        (("n0", "r5", "b5"), True, False),
        (("n5", "n5"), True, True),
    ],
)
def test_access(
    dom0: Client, guest: Client, perms: tuple[str, ...], readable: bool, writable: bool
) -> None:
    dom0.write("/node", "v")
    dom0.chmod("/node", *perms)
    if readable:
        assert guest.read("/node") == b"v"
    else:
        assert guest.refused(xs.Read("/node")) == E.ACCES
        assert guest.refused(xs.Directory("/node")) == E.ACCES
        assert guest.refused(xs.GetPerms("/node")) == E.ACCES
    if writable:
        guest.write("/node", "w")
    else:
        assert guest.refused(xs.Write("/node", b"w")) == E.ACCES
        assert guest.refused(xs.Write("/node/child", b"w")) == E.ACCES
        assert guest.refused(xs.Rm("/node")) == E.ACCES


def test_a_guest_does_not_learn_what_exists_in_places_it_cannot_read(
    dom0: Client, guest: Client
) -> None:
    dom0.write("/secret/there")
    assert guest.refused(xs.Read("/secret/there")) == E.ACCES
    assert guest.refused(xs.Read("/secret/not-there")) == E.ACCES
    assert guest.refused(xs.Rm("/secret/not-there")) == E.ACCES
    assert guest.refused(xs.Read("data/not-there")) == E.NOENT


def test_set_perms_rules(dom0: Client, guest: Client) -> None:
    guest.write("data/x")
    guest.chmod("data/x", "r5", "b7")
    assert dom0.perms("/local/domain/5/data/x") == ["r5", "b7"]
    assert guest.refused(xs.SetPerms("data/x", ("n7",))) == E.PERM
    dom0.write("/theirs")
    dom0.chmod("/theirs", "b0")
    assert guest.refused(xs.SetPerms("/theirs", ("b0", "b5"))) == E.ACCES
    for bad in ("x5", "r", "r70000", "", "r-1", "i5"):
        assert dom0.refused(xs.SetPerms("/theirs", (bad,))) == E.INVAL
    dom0.chmod("/local/domain/5/data/x", "n7")
    assert guest.refused(xs.Read("data/x")) == E.ACCES


def test_target_gives_the_rights_of_another_domain(
    xenstore: Xenstore, dom0: Client, guest: Client
) -> None:
    stubdom = make_guest(xenstore, dom0, 6)
    assert stubdom.refused(xs.Read("/local/domain/5/data")) == E.ACCES
    dom0.ask(xs.SetTarget(6, 5))
    stubdom.write("/local/domain/5/data", "as five")
    assert dom0.refused(xs.SetTarget(6, 9)) == E.NOENT
    xenstore.release(5)
    dom0.write("/n")
    dom0.chmod("/n", "n5")
    assert stubdom.refused(xs.Read("/n")) == E.ACCES


@pytest.mark.parametrize(
    "request_",
    [
        xs.Control(("help",)),
        xs.Introduce(9, 1, 1),
        xs.Release(5),
        xs.IsDomainIntroduced(5),
        xs.Resume(5),
        xs.SetTarget(5, 0),
    ],
    ids=lambda r: type(r).__name__,
)
def test_domid_0_only(guest: Client, request_: xs.Request) -> None:
    assert guest.refused(request_) == E.ACCES
