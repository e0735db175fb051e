"""Who wants to hear of what happens to domains."""

from __future__ import annotations

from collections.abc import Callable

from pyxen.xend.record import JsonObject

Listener = Callable[[JsonObject], None]


class Events:
    """Passes each event to every listener, in order. A listener may leave while it is called."""

    def __init__(self) -> None:
        self._listeners: list[Listener] = []

    def listen(self, listener: Listener) -> Callable[[], None]:
        """Call `listener` with every event from now on; returns what ends that."""
        self._listeners.append(listener)

        def leave() -> None:
            if listener in self._listeners:
                self._listeners.remove(listener)

        return leave

    def publish(self, kind: str, **details: object) -> None:
        """Tell everybody: {"event": kind, …}."""
        event: JsonObject = {"event": kind, **details}
        for listener in list(self._listeners):
            listener(event)
