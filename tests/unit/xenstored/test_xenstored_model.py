"""Random requests against a plain dictionary that follows the specification."""

import tempfile
from contextlib import suppress
from pathlib import Path

import pytest

pytest.importorskip("hypothesis")

from hypothesis import given, settings
from hypothesis import strategies as st
from xenstore_client import Client

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.xenstored.daemon import Xenstore
from pyxen.xenstored.tree import walk

NAMES = st.sampled_from(["a", "b", "c"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map(lambda names: "/" + "/".join(names))
REQUESTS = st.one_of(
    st.builds(xs.Read, PATHS),
    st.builds(xs.Write, PATHS, st.binary(max_size=3)),
    st.builds(xs.Mkdir, PATHS),
    st.builds(xs.Rm, PATHS),
    st.builds(xs.Directory, PATHS),
    st.builds(xs.GetPerms, PATHS),
    st.builds(xs.SetPerms, PATHS, st.sampled_from([("n0",), ("r0", "b3"), ("w7",)])),
)
# (which transaction, or None for no transaction; a request, or True/False to end it)
STEPS = st.lists(
    st.tuples(st.sampled_from([None, 0, 1]), st.one_of(REQUESTS, st.booleans())), max_size=40
)

Model = dict[str, tuple[bytes, tuple[str, ...]]]


def parent(path: str) -> str:
    return path.rpartition("/")[0] or "/"


def create(model: Model, path: str) -> None:
    if path not in model:
        create(model, parent(path))
        model[path] = (b"", model[parent(path)][1])


def carry_out(model: Model, request: xs.Request) -> bytes | E:
    """What the specification says about a request of domid 0."""
    assert isinstance(request, xs.PathRequest | xs.Write | xs.SetPerms)
    path = request.path
    match request:
        case xs.Write(path, value):
            create(model, path)
            model[path] = (value, model[path][1])
        case xs.Mkdir(path):
            create(model, path)
        case xs.Rm(path):
            if parent(path) not in model:
                return E.NOENT
            for name in [n for n in model if n == path or n.startswith(path + "/")]:
                del model[name]
        case _ if path not in model:
            return E.NOENT
        case xs.Read(path):
            return model[path][0]
        case xs.Directory(path):
            names = sorted(n.rpartition("/")[2] for n in model if parent(n) == path and n != "/")
            return b"".join(n.encode() + b"\0" for n in names)
        case xs.GetPerms(path):
            return b"".join(p.encode() + b"\0" for p in model[path][1])
        case xs.SetPerms(path, perms):
            model[path] = (model[path][0], perms)
    return b"OK\0"


def ask(client: Client, request: xs.Request, tx: int = 0) -> bytes | E:
    try:
        return client.ask(request, tx)
    except XenError as error:
        return error.errno


def snapshot(xenstore: Xenstore) -> Model:
    return {path: (n.value, tuple(map(str, n.perms))) for path, n in walk(xenstore.store.root, "/")}


@settings(max_examples=300, deadline=None)
@given(STEPS)
def test_store_behaves_like_a_dictionary(steps: list[tuple[int | None, xs.Request | bool]]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "journal"
        xenstore = Xenstore(path)
        run(xenstore, steps)
        again = Xenstore(path)
        assert snapshot(again) == snapshot(xenstore)
        again.close()
        xenstore.close()


def run(xenstore: Xenstore, steps: list[tuple[int | None, xs.Request | bool]]) -> None:
    client = Client(xenstore)
    watcher = Client(xenstore)
    watcher.watch("/")
    watcher.events()
    live = snapshot(xenstore)
    # Of each open transaction: its number, its copy, the live tree at its start, its requests.
    opened: dict[int, tuple[int, Model, Model, list[xs.Request]]] = {}
    for which, step in steps:
        before = live
        if which is None:
            if isinstance(step, bool):
                continue
            live = dict(live)
            assert ask(client, step) == carry_out(live, step)
        elif which not in opened:
            opened[which] = (client.start(), dict(live), dict(live), [])
        elif isinstance(step, bool):
            live = end(client, live, opened.pop(which), step)
        else:
            number, copy, _, requests = opened[which]
            requests.append(step)
            assert ask(client, step, number) == carry_out(copy, step)
        assert snapshot(xenstore) == live
        xenstore.store.check()
        told = [path for path, _ in watcher.events()]
        assert all(is_told(path, before, live, told) for path in before.keys() | live.keys())
        assert before != live or not told or isinstance(step, xs.Write | xs.SetPerms | bool)


def is_told(path: str, before: Model, after: Model, told: list[str]) -> bool:
    """A change has an event of its own; what appears or goes with another node has that one's."""
    if before.get(path) == after.get(path) or path in told:
        return True
    if path not in after:
        return any(path.startswith(p + "/") for p in told)
    return path not in before and any(p.startswith(path + "/") for p in told)


def end(
    client: Client,
    live: Model,
    transaction: tuple[int, Model, Model, list[xs.Request]],
    commit: bool,
) -> Model:
    """A commit that succeeds equals doing the transaction now; one without company succeeds."""
    number, copy, start, requests = transaction
    answer = ask(client, xs.TransactionEnd(commit), number)
    if not commit:
        assert answer == b"OK\0"
        return live
    if answer == E.AGAIN:
        return live
    assert answer == b"OK\0"
    if copy == start:
        return live
    serial = dict(live)
    now = [carry_out(serial, request) for request in requests]
    then = dict(start)
    assert now == [carry_out(then, request) for request in requests]
    return serial


@settings(max_examples=200, deadline=None)
@given(st.lists(REQUESTS, max_size=25), st.lists(REQUESTS, min_size=1, max_size=3))
def test_transaction_without_company_commits(
    before: list[xs.Request], inside: list[xs.Request]
) -> None:
    xenstore = Xenstore()
    client = Client(xenstore)
    for request in before:
        ask(client, request)
    model = snapshot(xenstore)
    tx = client.start()
    for request in inside:
        assert ask(client, request, tx) == carry_out(model, request)
    client.commit(tx)
    assert snapshot(xenstore) == model


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_of_a_guest_break_the_daemon(data: bytes) -> None:
    xenstore = Xenstore()
    xenstore.introduce(5, 1, 1)
    client = Client(xenstore, 5)
    before = snapshot(xenstore)
    with suppress(xs.RemoteProtocolError):
        client.connection.receive(data)
    assert snapshot(xenstore) == before


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 24), st.binary(max_size=60), st.sampled_from([0, 1, 1 << 20]))
def test_no_request_of_a_guest_breaks_the_daemon(op: int, payload: bytes, tx: int) -> None:
    xenstore = Xenstore()
    xenstore.introduce(5, 1, 1)
    client = Client(xenstore, 5)
    before = snapshot(xenstore)
    client.connection.receive(xs.Message(op, 1, tx, payload).pack())
    assert len([m for m in client.received if m.op != xs.Op.WATCH_EVENT]) == 1
    assert snapshot(xenstore) == before
