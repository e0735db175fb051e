"""What a guest asked of xenstore and has not been told yet: repeated when xenstored is replaced.

A domain process moves whole messages between the guest's ring and xenstored. When xenstored's
process dies, requests without an answer may or may not have been carried out; all of them are
repeated to its successor. That is safe: writes are idempotent, a transaction of the dead process
answers EAGAIN at its end, and a re-attached guest that watches twice is told OK.
"""

from collections import deque

from pyxen.proto.xs_wire import Message, MessageStream, Op


class UnansweredRequests:
    """Sans-IO bookkeeping between one guest's ring and xenstored; both directions hand on whole
    messages only, so that neither side ever sees half of one after a change of process.
    """

    def __init__(self) -> None:
        self._requests = MessageStream()
        self._replies = MessageStream()
        self._unanswered: deque[Message] = deque()

    def from_guest(self, data: bytes) -> bytes:
        """Bytes the guest produced; returns what can be sent to xenstored now.

        Raises: RemoteProtocolError for a payload over the limit.
        """
        self._requests.feed(data)
        messages = list(self._requests)
        self._unanswered.extend(messages)
        return b"".join(m.pack() for m in messages)

    def from_xenstored(self, data: bytes) -> bytes:
        """Bytes xenstored sent; returns what can be handed to the guest now."""
        self._replies.feed(data)
        messages = list(self._replies)
        for message in messages:
            if message.op != Op.WATCH_EVENT:
                self._answered(message)
        return b"".join(m.pack() for m in messages)

    def _answered(self, reply: Message) -> None:
        for index, request in enumerate(self._unanswered):
            if (request.req_id, request.tx_id) == (reply.req_id, reply.tx_id):
                del self._unanswered[index]
                return

    def reconnected(self) -> bytes:
        """A new xenstored is there: what to send to it first."""
        self._replies = MessageStream()
        return b"".join(m.pack() for m in self._unanswered)

    @property
    def outstanding(self) -> int:
        """How many requests wait for an answer."""
        return len(self._unanswered)
