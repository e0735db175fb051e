"""Xenstore without sockets: the store, its watches, the domains it knows, and its journal."""

import logging
from collections.abc import Callable, Container, Iterable, Iterator
from pathlib import Path

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.xenstored import operations, tree
from pyxen.xenstored.connection import Connection
from pyxen.xenstored.journal import Journal
from pyxen.xenstored.permissions import DOM0, DOM0_ONLY, Caller
from pyxen.xenstored.quotas import Quotas
from pyxen.xenstored.records import (
    Introduced,
    Put,
    QuotaSet,
    Record,
    Released,
    Started,
    Targeted,
    Watched,
    pack,
    pack_put,
    pack_removed,
)
from pyxen.xenstored.saved import SavedState
from pyxen.xenstored.store import Store
from pyxen.xenstored.view import Event, View
from pyxen.xenstored.watches import Watches

log = logging.getLogger(__name__)

# A transaction's number carries the epoch of the xenstored that opened it: the next one does not
# give out a number that a guest may still hold.
_EPOCH_SHIFT = 20
_EPOCHS = 1 << 12

_INITIAL_NODES = {
    "/@introduceDomain": b"",
    "/@releaseDomain": b"",
    "/tool/xenstored": b"pyxen",
}


def _packed(view: View) -> bytes:
    """A view's edits as records, in the order in which they are applied."""
    parts = [pack_removed(path) for path in view.removed]
    parts += [pack_put(path, value, perms) for path, (value, perms) in view.written.items()]
    return b"".join(parts)


class Domain:
    """A domain that was introduced."""

    __slots__ = ("connection", "domid", "mfn", "port", "shutdown")

    def __init__(self, domid: int, mfn: int, port: int, connection: Connection) -> None:
        self.domid = domid
        self.mfn = mfn
        self.port = port
        self.connection = connection
        self.shutdown = False


class Xenstore:
    """The whole of xenstore's state and behaviour.

    Args: journal_path: where the state is kept, or None to keep it in memory only.
          on_introduce, on_release: called for INTRODUCE and RELEASE from a client, before they are
          carried out; they may refuse with a XenError.
    """

    def __init__(
        self,
        journal_path: Path | None = None,
        *,
        quotas: Quotas | None = None,
        on_introduce: Callable[[int, int, int], None] = lambda domid, mfn, port: None,
        on_release: Callable[[int], None] = lambda domid: None,
    ) -> None:
        self.quotas = quotas or Quotas()
        self.watches = Watches()
        self.domains: dict[int, Domain] = {}
        self._on_introduce = on_introduce
        self._on_release = on_release
        self._last_transaction = 0
        self._journal = Journal(journal_path) if journal_path else None
        saved = SavedState()
        if self._journal:
            for batch in self._journal.replay():
                saved.apply(batch)
        self.epoch = saved.epoch + 1
        self.store = Store(self.quotas, self._persist, self._publish, self.epoch << 40)
        self._restore(saved)

    def _restore(self, saved: SavedState) -> None:
        for name, value in saved.quotas.items():
            self.quotas.set(name, value)
        if saved.root is None:
            self._create_initial_nodes()
        else:
            self.store.load(saved.root)
        for domid, known in saved.domains.items():
            connection = Connection(self, Caller(domid, known.target))
            connection.resumed = True
            self.domains[domid] = Domain(domid, known.mfn, known.port, connection)
            for w in known.watches.values():
                self.watches.add(connection, w.path, w.token, w.depth, w.prefix)
        # Only now: the journal may be compacted to what is in memory.
        self.record(Started(self.epoch))

    def _create_initial_nodes(self) -> None:
        view = self.store.view()
        view.put("/", b"", DOM0_ONLY, view.root)
        for path, value in _INITIAL_NODES.items():
            view.create("/", tree.split(path), value, DOM0_ONLY)
        self.store.commit(view, DOM0)

    def close(self) -> None:
        """Close the journal."""
        if self._journal:
            self._journal.close()

    # --- persistence ---

    def record(self, *records: Record) -> None:
        """Write to the journal what is about to become true. Raises XenError(EIO)."""
        self._append(b"".join(map(pack, records)))

    def _persist(self, view: View) -> None:
        if self._journal is not None:
            self._append(_packed(view))

    def _append(self, batch: bytes) -> None:
        if self._journal is None:
            return
        if self._journal.overgrown:
            self._journal.compact(self.state())
        self._journal.append(batch)

    def state(self) -> Iterator[Record]:
        """Records from which everything that outlives a restart can be rebuilt."""
        yield Started(self.epoch)
        defaults = {name: value for name, value, _ in Quotas().items()}
        for name, value, _ in self.quotas.items():
            if value != defaults[name]:
                yield QuotaSet(name, value)
        for path, node in tree.walk(self.store.root, "/"):
            yield Put(path, node.value, node.perms)
        for domain in self.domains.values():
            yield Introduced(domain.domid, domain.mfn, domain.port)
            caller = domain.connection.caller
            if caller.target is not None:
                yield Targeted(domain.domid, caller.target)
            for w in self.watches.of(domain.connection):
                yield Watched(domain.domid, w.path, w.token, w.depth, w.prefix)

    # --- events ---

    def _publish(self, events: Iterable[Event]) -> None:
        for event in events:
            self.watches.fire(event)

    def _fire_special(self, name: str, domid: int) -> None:
        self.watches.fire_special(name, domid, self.store.special_perms(name))

    # --- transactions ---

    def next_transaction_id(self, taken: Container[int]) -> int:
        """A number for a new transaction, not among those a client has open."""
        while True:
            self._last_transaction = (self._last_transaction + 1) % (1 << _EPOCH_SHIFT)
            number = (self.epoch % _EPOCHS) << _EPOCH_SHIFT | self._last_transaction
            if number and number not in taken:
                return number

    # --- domains ---

    def connection_of(self, domid: int) -> Connection | None:
        """The connection of an introduced guest."""
        domain = self.domains.get(domid)
        return domain.connection if domain else None

    def is_introduced(self, domid: int) -> bool:
        """Whether a domain may talk to xenstore."""
        return domid in (0, xs.DOMID_SELF) or domid in self.domains

    def introduce(self, domid: int, mfn: int, port: int) -> None:
        """A domain is there: its ring is in frame `mfn`, its event channel is `port`.

        Known already, it starts afresh: its watches and transactions go, nobody is told.
        Raises: XenError(EINVAL) unless `domid` is that of a guest, XenError(EIO).
        """
        if not 0 < domid < xs.DOMID_FIRST_RESERVED:
            raise XenError(E.INVAL, f"domid {domid}")
        self.record(Introduced(domid, mfn, port))
        # COMMIT
        domain = self.domains.get(domid)
        if domain is None:
            connection = Connection(self, Caller(domid))
            self.domains[domid] = Domain(domid, mfn, port, connection)
            self._fire_special("@introduceDomain", domid)
        else:
            domain.mfn, domain.port = mfn, port
            domain.connection.reset()
            domain.connection.resumed = False

    def introduce_from_wire(self, domid: int, mfn: int, port: int) -> None:
        """INTRODUCE by a client."""
        self._on_introduce(domid, mfn, port)
        self.introduce(domid, mfn, port)

    def release(self, domid: int) -> None:
        """A domain is gone: so are its watches, transactions, nodes and permissions.

        Raises: XenError(ENOENT) if it was not introduced, XenError(EIO).
        """
        domain = self._domain(domid)
        view = self.store.view()
        operations.forget_domain(view, domid)
        # Watches go before the events of its nodes' removal: it is not told of its own end.
        self.store.commit(
            view,
            DOM0,
            lambda v: self._append(_packed(v) + pack(Released(domid))),
            lambda: self._drop(domain),
        )
        self._fire_special("@releaseDomain", domid)

    def _drop(self, domain: Domain) -> None:
        del self.domains[domain.domid]
        domain.connection.close()
        for other in self.domains.values():
            if other.connection.caller.target == domain.domid:
                other.connection.caller = Caller(other.domid)

    def release_from_wire(self, domid: int) -> None:
        """RELEASE by a client."""
        if domid == 0:
            raise XenError(E.INVAL, "domid 0 stays")
        self._domain(domid)
        self._on_release(domid)
        if domid in self.domains:
            self.release(domid)

    def notify_shutdown(self, domid: int) -> None:
        """A domain has shut down or crashed: @releaseDomain, once until `resume`."""
        domain = self._domain(domid)
        if not domain.shutdown:
            domain.shutdown = True
            self._fire_special("@releaseDomain", domid)

    def resume(self, domid: int) -> None:
        """A domain that had shut down runs again. Raises XenError(ENOENT)."""
        self._domain(domid).shutdown = False

    def set_target(self, domid: int, target: int) -> None:
        """Give a domain the rights of another. Raises XenError(ENOENT)."""
        domain = self._domain(domid)
        self._domain(target)
        self.record(Targeted(domid, target))
        # COMMIT
        domain.connection.caller = Caller(domid, target)

    def _domain(self, domid: int) -> Domain:
        domain = self.domains.get(domid)
        if domain is None:
            raise XenError(E.NOENT, f"domid {domid} is not introduced")
        return domain

    def set_quota(self, name: str, value: int) -> None:
        """Change a limit. Raises XenError(EINVAL)."""
        self.quotas.set(name, value)
        self.record(QuotaSet(name, value))
