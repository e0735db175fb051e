"""Moves xenstore messages between the guest's ring and the stream to xenstored.

Source: public/io/xs_wire.h (struct xenstore_domain_interface), docs/misc/xenstore-ring.txt.

The stream may break when xend is replaced: requests without an answer are repeated on the next one,
and the guest notices nothing.
"""

from __future__ import annotations

from collections.abc import Callable

from pyxen.abi.io.xs_wire import XENSTORE_RING_SIZE, XenstoreDomainInterface
from pyxen.backend.byte_ring import ByteRing, RingBroken
from pyxen.memory.machine import MachineMemory
from pyxen.proto.xs import RemoteProtocolError
from pyxen.proto.xs_replay import UnansweredRequests
from pyxen.types import PAGE_SHIFT, Mfn

BACKLOG_BYTES = 64 << 10
"""Replies that the guest did not take yet; beyond that xenstored's stream is not read."""

OUTSTANDING_REQUESTS = 64
"""Requests without an answer; beyond that the guest's ring is not read."""

Send = Callable[[bytes], None]
Hold = Callable[[bool], None]

_AT = XenstoreDomainInterface.OFFSET


class XenstoreRing:
    """One guest's xenstore ring, and a stream to xenstored, which comes and goes.

    The stream offers `send`, which gives it bytes, and `hold`, which stops and resumes its reading.
    """

    def __init__(self, memory: MachineMemory, mfn: Mfn, raise_event: Callable[[], None]) -> None:
        page = mfn << PAGE_SHIFT
        self._requests = ByteRing(
            memory,
            page + _AT["req"],
            XENSTORE_RING_SIZE,
            page + _AT["req_cons"],
            page + _AT["req_prod"],
        )
        self._replies = ByteRing(
            memory,
            page + _AT["rsp"],
            XENSTORE_RING_SIZE,
            page + _AT["rsp_cons"],
            page + _AT["rsp_prod"],
        )
        self._raise_event = raise_event
        self._unanswered = UnansweredRequests()
        self._backlog = bytearray()
        self._send: Send | None = None
        self._hold: Hold = lambda held: None
        self._held = False
        self.broken = False
        """The guest broke the protocol: its ring is not looked at any more."""

    def connect(self, send: Send, hold: Hold) -> None:
        """A stream to xenstored is there."""
        self._send, self._hold, self._held = send, hold, False
        repeated = self._unanswered.reconnected()
        if repeated:
            send(repeated)
        self.notified()

    def disconnect(self, send: Send) -> None:
        """A stream is gone; what the guest asks stays in its ring until the next one."""
        if self._send == send:
            self._send, self._hold = None, lambda held: None

    def notified(self) -> None:
        """The guest sent an event: there are requests, or room for replies."""
        if self.broken:
            return
        try:
            given = self._give_replies()
            taken = self._take_requests()
        except (RingBroken, RemoteProtocolError):
            self.broken = True
            self._backlog.clear()
            return
        if taken or given:
            self._raise_event()
        if self.congested != self._held:
            self._held = self.congested
            self._hold(self._held)

    def received(self, data: bytes) -> None:
        """Bytes from xenstored."""
        replies = self._unanswered.from_xenstored(data)
        if not self.broken:
            self._backlog += replies
            self.notified()

    @property
    def congested(self) -> bool:
        """Whether xenstored's stream should not be read for now."""
        return len(self._backlog) > BACKLOG_BYTES

    def _take_requests(self) -> bool:
        if self._send is None or self.congested:
            return False
        if self._unanswered.outstanding >= OUTSTANDING_REQUESTS:
            return False
        data = self._requests.take()
        if not data:
            return False
        messages = self._unanswered.from_guest(data)
        if messages:
            self._send(messages)
        return True

    def _give_replies(self) -> bool:
        if not self._backlog:
            return False
        moved = self._replies.put(self._backlog)
        del self._backlog[:moved]
        return moved > 0
