"""A client of xenstore without I/O: for back ends, which speak to a store that comes and goes.

What wants something of the store is a coroutine; the client gives it the answers as they come:

    async def work(store: XsClient) -> None:
        if await store.read("/local/domain/0/name") is None: …

    store.start(work(store))

Nothing waits: a coroutine rests until its answer is there. When the stream breaks, every coroutine
that waits for an answer ends with Disconnected; watches are set anew on the next stream, and fire
then, as all new watches do. So who reads again whatever a watch names needs nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Final, TypeAlias, TypeVar

from pyxen.abi.errno import E
from pyxen.errors import XenError
from pyxen.proto import xs
from pyxen.types import U32

T = TypeVar("T")
Send: TypeAlias = Callable[[bytes], None]
Task: TypeAlias = Coroutine[Any, Any, None]
Watcher: TypeAlias = Callable[[str], None]

TRANSACTION_TRIES: Final = 32
"""How often a transaction that others disturb is tried."""


class Disconnected(Exception):
    """The stream to xenstored is gone; whether the request was carried out is unknown."""


class Pause:
    """What a coroutine awaits until somebody calls `resume`; at most once."""

    def __init__(self) -> None:
        self.resume: Callable[[], None] = self._early
        self._over = False

    def __await__(self) -> Generator[Pause, None, None]:
        if not self._over:
            yield self

    def _early(self) -> None:
        self._over = True


class _Ask:
    """What a coroutine awaits until a request is answered."""

    def __init__(self, request: xs.Request, tx_id: int) -> None:
        self.request, self.tx_id = request, tx_id

    def __await__(self) -> Generator[_Ask, xs.Message, bytes]:
        reply = yield self
        return xs.reply_payload(reply)


class XsClient:
    """Requests, transactions and watches of one client."""

    def __init__(self) -> None:
        self._send: Send | None = None
        self._stream = xs.MessageStream()
        self._waiting: dict[int, Task | None] = {}
        """By request number; None where nobody cares for the answer."""
        self._last_id = 0
        self._watches: dict[str, Watcher] = {}
        """By path, which is the token, too."""

    # --- the stream ---------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether there is a stream."""
        return self._send is not None

    def connect(self, send: Send) -> None:
        """A stream is there, instead of an older one if there is one."""
        self._cut()
        self._send = send
        for path in self._watches:
            self._tell(xs.Watch(path, path))

    def disconnect(self, send: Send) -> None:
        """The stream that was given as `send` is gone."""
        if self._send == send:
            self._cut()

    def _cut(self) -> None:
        self._send = None
        self._stream = xs.MessageStream()
        waiting, self._waiting = self._waiting, {}
        for task in waiting.values():
            if task is not None:
                self._run(task, None, Disconnected())

    def received(self, data: bytes) -> None:
        """Bytes of the stream. Raises: RemoteProtocolError, after which it has to be closed."""
        self._stream.feed(data)
        for message in self._stream:
            if message.op == xs.Op.WATCH_EVENT:
                self._event(message)
                continue
            if message.req_id not in self._waiting:
                raise xs.RemoteProtocolError(f"nobody asked for answer {message.req_id}")
            task = self._waiting.pop(message.req_id)
            if task is not None:
                self._run(task, message, None)

    def _event(self, message: xs.Message) -> None:
        match xs.split_strings(message.payload):
            case [path, token]:
                watcher = self._watches.get(token)
                if watcher is not None:
                    watcher(path)
            case _:
                raise xs.RemoteProtocolError("a watch event without path and token")

    # --- coroutines ---------------------------------------------------------------------------

    def start(self, task: Task) -> None:
        """Run a coroutine until it has to wait, and go on with it when what it waits for is there.

        It ends silently by Disconnected; any other exception comes out here, or of `received`.
        """
        self._run(task, None, None)

    def _run(self, task: Task, value: xs.Message | None, error: Exception | None) -> None:
        while True:
            try:
                wanted = task.send(value) if error is None else task.throw(error)
            except (StopIteration, Disconnected):
                return
            value, error = None, None
            if isinstance(wanted, Pause):
                wanted.resume = lambda: self._run(task, None, None)
                return
            if self._send is not None:
                self._tell(wanted.request, wanted.tx_id, task)
                return
            error = Disconnected()

    def _tell(self, request: xs.Request, tx_id: int = 0, task: Task | None = None) -> None:
        assert self._send is not None
        self._last_id = self._last_id % U32 + 1
        self._waiting[self._last_id] = task
        self._send(xs.request_message(request, self._last_id, tx_id).pack())

    # --- requests -----------------------------------------------------------------------------

    async def ask(self, request: xs.Request, tx_id: int = 0) -> bytes:
        """Any request. Raises: XenError as answered, Disconnected."""
        return await _Ask(request, tx_id)

    async def read(self, path: str, tx_id: int = 0) -> bytes | None:
        """A node's value; None if there is none. Raises: XenError, Disconnected."""
        return await _unless_missing(_Ask(xs.Read(path), tx_id))

    async def directory(self, path: str, tx_id: int = 0) -> list[str]:
        """The names of a node's children. Raises: XenError (E2BIG above 4096 bytes)."""
        names = await _unless_missing(_Ask(xs.Directory(path), tx_id))
        return xs.split_strings(names) if names else []

    async def write(self, path: str, value: str, tx_id: int = 0) -> None:
        """Set a node. Raises: XenError, Disconnected."""
        await _Ask(xs.Write(path, value.encode()), tx_id)

    async def transaction(self, body: Callable[[int], Awaitable[T]]) -> T:
        """Do `body(tx_id)` as one, again and again while others disturb it.

        Raises: XenError(EAGAIN) after TRANSACTION_TRIES; what `body` raises, which abandons it.
        """
        for _ in range(TRANSACTION_TRIES):
            tx_id = int((await _Ask(xs.TransactionStart(), 0))[:-1])
            try:
                result = await body(tx_id)
            except Disconnected:
                raise
            except Exception:
                await _Ask(xs.TransactionEnd(commit=False), tx_id)
                raise
            try:
                await _Ask(xs.TransactionEnd(commit=True), tx_id)
            except XenError as error:
                if error.errno != E.AGAIN:
                    raise
            else:
                return result
        raise XenError(E.AGAIN, "a transaction that is always disturbed")

    # --- watches ------------------------------------------------------------------------------

    def watch(self, path: str, watcher: Watcher) -> None:
        """Call `watcher(path of the change)` for a node and all below it; first for the node."""
        assert path not in self._watches
        self._watches[path] = watcher
        if self._send is not None:
            self._tell(xs.Watch(path, path))

    def unwatch(self, path: str) -> None:
        """Take a watch back."""
        if self._watches.pop(path, None) is not None and self._send is not None:
            self._tell(xs.Unwatch(path, path))


async def _unless_missing(asked: _Ask) -> bytes | None:
    try:
        return await asked
    except XenError as error:
        if error.errno != E.NOENT:
            raise
        return None
