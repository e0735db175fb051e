"""A xenstore in memory and clients of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from xenstore_client import Client, make_guest

from pyxen.xenstored.daemon import Xenstore


@pytest.fixture
def xenstore() -> Iterator[Xenstore]:
    store = Xenstore()
    yield store
    store.store.check()


@pytest.fixture
def dom0(xenstore: Xenstore) -> Client:
    return Client(xenstore)


@pytest.fixture
def guest(xenstore: Xenstore, dom0: Client) -> Client:
    """Domain 5 with a home that it may read, and a data directory that it owns."""
    return make_guest(xenstore, dom0, 5)


@pytest.fixture
def journal_path(tmp_path: Path) -> Path:
    return tmp_path / "xenstore.journal"
