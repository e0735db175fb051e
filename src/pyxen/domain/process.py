"""The domain process: waits for its specification, builds the domain, runs it, answers xend.

xend may die and be replaced at any time; this process goes on and waits for the next one.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from pyxen.domain.control import Connection, ControlServer
from pyxen.domain.machine import Machine, MachineSpec
from pyxen.domain.reactor import Reactor
from pyxen.domain.trace import Traces, refuse
from pyxen.errors import UserError
from pyxen.hypervisor.domain import ShutdownReason
from pyxen.hypervisor.tracing import Tracing
from pyxen.proto.xs import RemoteProtocolError

CRASH_CONSOLE_BYTES = 4096
MAX_REPLAY_BYTES = 4 << 20


class DomainProcess:
    """Commands of the control protocol, on one domain."""

    def __init__(self, spec: dict[str, Any]) -> None:
        """Listen; nothing is built yet. Raises: KeyError, ValueError, OSError."""
        self._spec = MachineSpec.from_json(spec)
        self._spec.log_dir.mkdir(parents=True, exist_ok=True)
        self.reactor = Reactor()
        self._server = ControlServer(Path(spec["run_dir"]) / "control.sock", self.reactor, self)
        self._machine: Machine | None = None
        self._traces: Traces | None = None
        self.name = self._spec.domain.name
        self._commands = {
            "build": self._build,
            "pause": self._pause,
            "unpause": self._unpause,
            "status": self._status,
            "destroy": self._destroy,
            "set_name": self._set_name,
            "hypercalls": self._hypercalls,
        }

    def run(self) -> None:
        """Serve until destroyed."""
        while not self.reactor.closing:
            if self._machine is None:
                self.reactor.wait(None)
            else:
                self._machine.runloop.run()
        if self._traces is not None:
            self._traces.end("destroyed")
        if self._machine is not None:
            self._machine.close()
        self._server.close()

    @property
    def machine(self) -> Machine:
        """The built domain. Raises: UserError before that."""
        if self._machine is None:
            raise UserError("the domain is not built yet")
        return self._machine

    # --- commands ---------------------------------------------------------------------------

    def command(self, name: str, request: dict[str, Any]) -> dict[str, Any]:
        """Carry out one command. Raises: UserError."""
        handler = self._commands.get(name)
        if handler is None:
            raise UserError(f"unknown command {name!r}")
        return handler(request)

    def _build(self, request: dict[str, Any]) -> dict[str, Any]:
        if self._machine is not None:
            raise UserError("the domain is built already")
        machine = Machine(self._spec, self.reactor)
        machine.domain.on_shutdown = self._on_shutdown
        machine.domain.on_log = lambda line: self._server.publish({"event": "dmesg", "line": line})
        self._machine = machine
        self._traces = Traces(Tracing(machine.runloop), self.reactor)
        return {
            "store_mfn": machine.built.store_mfn,
            "console_mfn": machine.built.console_mfn,
            "tty": machine.pty.name,
        }

    def _pause(self, request: dict[str, Any]) -> dict[str, Any]:
        self.machine.domain.pause()
        return {"pause_count": self.machine.domain.pause_count}

    def _unpause(self, request: dict[str, Any]) -> dict[str, Any]:
        domain = self.machine.domain
        domain.unpause()
        return {"pause_count": domain.pause_count}

    def _status(self, request: dict[str, Any]) -> dict[str, Any]:
        domain = self.machine.domain
        reason = domain.shutdown_reason
        runnable = any(v.runnable for v in domain.vcpus.values())
        running = runnable and not domain.stopped
        return {
            "state": {
                "running": running,
                "blocked": not runnable and not domain.stopped,
                "paused": domain.pause_count > 0,
                "shutdown": reason is not None,
                "crashed": reason is ShutdownReason.CRASH,
                "dying": False,
            },
            "shutdown_reason": reason.name.lower() if reason is not None else None,
            "cpu_time_ns": sum(v.cpu_time_ns for v in domain.vcpus.values()),
            "memory_kib": domain.reservation.pages * 4,
            "maxmem_kib": domain.reservation.max_pages * 4,
            "vcpus_online": sum(v.up for v in domain.vcpus.values()),
            "vcpus": [
                {
                    "id": v.vcpu_id,
                    "state": "running" if v.runnable else "blocked" if v.up else "offline",
                    "cpu_time_ns": v.cpu_time_ns,
                }
                for v in domain.vcpus.values()
            ],
            "pause_count": domain.pause_count,
            "tty": self.machine.pty.name,
            "name": self.name,
        }

    def _destroy(self, request: dict[str, Any]) -> dict[str, Any]:
        self.reactor.close()
        return {}

    def _set_name(self, request: dict[str, Any]) -> dict[str, Any]:
        self.name = str(request["name"])
        return {}

    def _hypercalls(self, request: dict[str, Any]) -> dict[str, Any]:
        """Calls and failures by number (the last: all unknown ones), and what was done natively."""
        pv = self.machine.domain.pv
        return {
            "calls": pv.calls.tolist(),
            "failures": pv.failures.tolist(),
            "native": pv.counters,
        }

    # --- streams ----------------------------------------------------------------------------

    def open_console(self, connection: Connection, replay: int) -> None:
        """Show what was kept, then everything new; what comes in is typed."""
        if self._machine is None:
            connection.close()
            return
        machine = self._machine
        log = machine.console_log
        kept = log.everything()[-MAX_REPLAY_BYTES:] if replay < 0 else log.tail(replay)
        connection.on_data = machine.console.type
        connection.on_close = machine.console.watch(connection.send)
        connection.send(kept)

    def open_xenstore(self, connection: Connection) -> None:
        """Carry the guest's requests to xenstored; a newer stream replaces an older one."""
        if self._machine is None:
            connection.close()
            return
        ring = self._machine.xenstore

        def received(data: bytes) -> None:
            try:
                ring.received(data)
            except RemoteProtocolError:  # not xenstored, or a broken one: wait for the next
                connection.close()

        connection.on_data = received
        connection.on_close = lambda: ring.disconnect(connection.send)
        ring.connect(connection.send, connection.hold)

    def open_backends(self, connection: Connection) -> None:
        """Let the back ends speak to xenstored; a newer stream replaces an older one."""
        if self._machine is None:
            connection.close()
            return
        store = self._machine.devices.store

        def received(data: bytes) -> None:
            try:
                store.received(data)
            except RemoteProtocolError:
                connection.close()

        connection.on_data = received
        connection.on_close = lambda: store.disconnect(connection.send)
        store.connect(connection.send)

    def open_trace(self, connection: Connection, header: dict[str, Any]) -> None:
        """Tell what the domain does, until it ends or the other side has had enough."""
        if self._traces is None:
            refuse(connection, UserError("the domain is not built yet"))
            return
        domain = self.machine.domain
        told = {"domid": domain.domid, "name": self.name, "paused": domain.pause_count > 0}
        self._traces.open(connection, header, told)
        if domain.shutdown_reason is not None:
            self._traces.end_soon(domain.shutdown_reason.name.lower())

    # --- the guest's end --------------------------------------------------------------------

    def _on_shutdown(self, reason: ShutdownReason) -> None:
        if reason is ShutdownReason.CRASH:
            self._server.publish({"event": "crash", "report": self._write_crash_report()})
        self._server.publish({"event": "shutdown", "reason": reason.name.lower()})
        if self._traces is not None:
            self._traces.end_soon(reason.name.lower())

    def _write_crash_report(self) -> str | None:
        from pyxen.domain.crash import report

        machine = self.machine
        path = self._spec.log_dir / "crash.txt"
        tail = machine.console_log.tail(CRASH_CONSOLE_BYTES)
        try:
            path.write_text(report(machine.domain, self._spec.kernel, tail))
        except OSError as error:
            os.write(2, f"cannot write {path}: {error.strerror}\n".encode())
            return None
        return str(path)
