"""One client: its requests, transactions and watches, without I/O."""

import logging
from typing import TYPE_CHECKING

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.xenstored import operations
from pyxen.xenstored.control import control
from pyxen.xenstored.outbox import Outbox
from pyxen.xenstored.permissions import Caller, parse_perms
from pyxen.xenstored.records import Unwatched, Watched, WatchesReset
from pyxen.xenstored.transactions import Transaction
from pyxen.xenstored.view import View

if TYPE_CHECKING:
    from pyxen.xenstored.daemon import Xenstore

log = logging.getLogger(__name__)

_PRIVILEGED = frozenset(
    {
        xs.Op.CONTROL,
        xs.Op.INTRODUCE,
        xs.Op.RELEASE,
        xs.Op.IS_DOMAIN_INTRODUCED,
        xs.Op.RESUME,
        xs.Op.SET_TARGET,
    }
)


def _discard(data: bytes) -> None:
    """Where a guest's messages go while its domain process is not connected."""


class Connection:
    """The protocol state of one client.

    That of a guest outlives its transport: `attach` gives it a new one. `resumed` is set on a
    guest's connection that has been through a change of transport or of xenstored; such a guest
    may repeat requests that were carried out already, and name transactions of the past.
    """

    def __init__(self, xenstore: "Xenstore", caller: Caller, outbox: Outbox | None = None) -> None:
        self.caller = caller
        self.transactions: dict[int, Transaction] = {}
        self.resumed = False
        self._attached = False
        self._xenstore = xenstore
        self._store = xenstore.store
        self._base = xs.domain_path(caller.domid)
        self._stream = xs.MessageStream()
        self.outbox = outbox or Outbox(_discard)

    @property
    def _is_guest(self) -> bool:
        return self.caller.domid != 0

    # --- transport ---

    def attach(self, outbox: Outbox) -> None:
        """Go on over a new transport. After the first time every watch fires once: events may have
        been lost in between, and watches may fire without cause.
        """
        self._stream = xs.MessageStream()
        self.outbox = outbox
        self.resumed = self.resumed or self._attached
        self._attached = True
        if self.resumed:
            for watch in self._xenstore.watches.of(self):
                watch.fire(watch.path)

    def detach(self) -> None:
        """The transport is gone; what is sent until the next one is lost."""
        self.outbox = Outbox(_discard)

    def close(self) -> None:
        """The client is gone."""
        self.detach()
        self.transactions.clear()
        self._xenstore.watches.remove_all(self)

    def receive(self, data: bytes) -> None:
        """Carry out the requests in what the client sent. Raises RemoteProtocolError."""
        self._stream.feed(data)
        for message in self._stream:
            self.handle(message)

    def deliver(self, path: str, token: str) -> None:
        """Send a watch event."""
        data = xs.watch_event(path, token)
        if data is not None:
            self.outbox.event(data, special=path.startswith("@"))

    # --- requests ---

    def handle(self, message: xs.Message) -> None:
        """Carry out one request and answer it."""
        try:
            if message.op in _PRIVILEGED and not self.caller.privileged:
                raise XenError(E.ACCES, "domid 0 only")
            request = xs.parse_request(message)
            payload = self._perform(request, message.tx_id)
        except XenError as error:
            log.debug("domid %d: %s: %s", self.caller.domid, message, error)
            self.outbox.reply(message.error(error.errno))
            return
        self.outbox.reply(message.reply(payload))
        if isinstance(request, xs.Watch):
            # The first event follows the answer.
            self.deliver(request.path, request.token)

    def _perform(self, request: xs.Request, tx_id: int) -> bytes:
        match request:
            case xs.PathRequest() | xs.Write() | xs.SetPerms() | xs.DirectoryPart() as node_request:
                return self._node_request(node_request, tx_id)
            case xs.TransactionStart():
                return self._transaction_start(tx_id)
            case xs.TransactionEnd(commit):
                self._transaction_end(tx_id, commit)
            case xs.Watch():
                self._watch(request)
            case xs.Unwatch():
                self._unwatch(request)
            case xs.ResetWatches():
                self.reset()
            case xs.GetDomainPath(domid):
                return xs.domain_path(domid).encode() + b"\0"
            case xs.IsDomainIntroduced(domid):
                return b"T\0" if self._xenstore.is_introduced(domid) else b"F\0"
            case xs.Control(arguments):
                return control(self._xenstore, arguments)
            case _:
                self._domain_request(request)
        return b"OK\0"

    def _domain_request(self, request: xs.Request) -> None:
        xenstore = self._xenstore
        match request:
            case xs.Introduce(domid, gfn, port):
                xenstore.introduce_from_wire(domid, gfn, port)
            case xs.Release(domid):
                xenstore.release_from_wire(domid)
            case xs.Resume(domid):
                xenstore.resume(domid)
            case xs.SetTarget(domid, target):
                xenstore.set_target(domid, target)

    # --- nodes ---

    def _path(self, path: str) -> str:
        if not path.startswith(("/", "@")):
            path = f"{self._base}/{path}"
        xs.check_path(path, self._store.quotas.path_max)
        return path

    def _node_request(
        self, request: xs.PathRequest | xs.Write | xs.SetPerms | xs.DirectoryPart, tx_id: int
    ) -> bytes:
        view: View
        if tx_id:
            view = self._transaction(tx_id)
        else:
            view = self._store.view()
        payload = self._on_view(view, request)
        if not tx_id:
            self._store.commit(view, self.caller)
        return payload

    def _on_view(
        self, view: View, request: xs.PathRequest | xs.Write | xs.SetPerms | xs.DirectoryPart
    ) -> bytes:
        caller, limits = self.caller, self._store.limits
        if isinstance(request, xs.SetPerms):
            perms = parse_perms(request.perms)
            special = request.path.startswith("@")
            path = request.path if special else self._path(request.path)
            operations.set_perms(view, caller, path, perms, limits)
            return b"OK\0"
        path = self._path(request.path)
        match request:
            case xs.Read():
                return operations.read(view, caller, path)
            case xs.Write():
                operations.write(view, caller, path, request.value, limits)
            case xs.Directory():
                return _names(operations.directory(view, caller, path))
            case xs.DirectoryPart():
                return _part(*operations.directory_generation(view, caller, path), request.offset)
            case xs.GetPerms():
                return _names(map(str, operations.get_perms(view, caller, path)))
            case xs.Mkdir():
                operations.mkdir(view, caller, path, limits)
            case xs.Rm():
                operations.rm(view, caller, path)
        return b"OK\0"

    # --- transactions ---

    def _transaction(self, tx_id: int) -> Transaction:
        transaction = self.transactions.get(tx_id)
        if transaction is not None:
            return transaction
        if not self.resumed:
            raise XenError(E.NOENT, f"transaction {tx_id}")
        return self._open_transaction(tx_id, doomed=True)

    def _open_transaction(self, tx_id: int, doomed: bool = False) -> Transaction:
        if self._is_guest and len(self.transactions) >= self._store.quotas.transactions:
            raise XenError(E.NOSPC, "too many transactions")
        transaction = self._store.transaction(self.caller, doomed)
        self.transactions[tx_id] = transaction
        return transaction

    def _transaction_start(self, tx_id: int) -> bytes:
        if tx_id:
            self._transaction(tx_id)
            raise XenError(E.BUSY, "transactions don't nest")
        number = self._xenstore.next_transaction_id(self.transactions)
        self._open_transaction(number)
        return f"{number}\0".encode()

    def _transaction_end(self, tx_id: int, commit: bool) -> None:
        if tx_id == 0:
            raise XenError(E.NOENT, "no transaction")
        transaction = self._transaction(tx_id)
        del self.transactions[tx_id]
        if commit:
            self._store.commit(transaction, self.caller)

    # --- watches ---

    def _watched_path(self, path: str) -> tuple[str, int]:
        """The absolute path, and how much of it the client leaves out."""
        if path.startswith("@"):
            if len(path) > xs.XENSTORE_REL_PATH_MAX:
                raise XenError(E.INVAL, "path too long")
            return path, 0
        return self._path(path), 0 if path.startswith("/") else len(self._base) + 1

    def _watch(self, request: xs.Watch) -> None:
        watches = self._xenstore.watches
        path, prefix = self._watched_path(request.path)
        if watches.has(self, path, request.token):
            if self.resumed:
                return
            raise XenError(E.EXIST, "watched already")
        if self._is_guest:
            if watches.count(self) >= self._store.quotas.watches:
                raise XenError(E.TOO_BIG, "too many watches")
            self._xenstore.record(
                Watched(self.caller.domid, path, request.token, request.depth, prefix)
            )
        # COMMIT
        watches.add(self, path, request.token, request.depth, prefix)

    def _unwatch(self, request: xs.Unwatch) -> None:
        watches = self._xenstore.watches
        path, _ = self._watched_path(request.path)
        if not watches.has(self, path, request.token):
            if self.resumed:
                return
            raise XenError(E.NOENT, "not watched")
        if self._is_guest:
            self._xenstore.record(Unwatched(self.caller.domid, path, request.token))
        # COMMIT
        watches.remove(self, path, request.token)

    def reset(self) -> None:
        """Forget all watches and transactions."""
        if self._is_guest:
            self._xenstore.record(WatchesReset(self.caller.domid))
        # COMMIT
        self.transactions.clear()
        self._xenstore.watches.remove_all(self)


def _names(names: "list[str] | map[str]") -> bytes:
    return "".join([f"{name}\0" for name in names]).encode()


def _part(generation: int, names: list[str], offset: int) -> bytes:
    """A DIRECTORY_PART answer: as many whole names as fit; an empty one marks the end."""
    head = f"{generation}\0".encode()
    blob = _names(names)
    if offset >= len(blob):
        return head + b"\0"
    room = xs.XENSTORE_PAYLOAD_MAX - len(head) - 1
    part = blob[offset : offset + room]
    if offset + len(part) == len(blob):
        return head + part + b"\0"
    return head + part[: part.rindex(b"\0") + 1]
