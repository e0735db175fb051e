"""A domain process without a guest: it speaks the control protocol and does what it is told.

The kernel's command line tells it: `refuse` (build fails), `die` (the process dies while building),
`hang` (building never ends), `deaf` (no xenstore client), `loop` (it ends right after its start),
`end=REASON` (it ends at once when it runs), `driverless` (it takes no disk), `busy` (it lets no
disk go). Its disks are real but for what they would do: a target with `none` in it cannot be
opened. What is typed on its console comes back; a typed line
`end REASON` ends the guest, `exit` kills the process.
"""

import asyncio
import contextlib
import json
import os
import sys
import time
from functools import partial
from pathlib import Path

from pyxen.backend.xenbus import Backend, XenBus
from pyxen.errors import UserError
from pyxen.paths import listen_unix
from pyxen.proto import xs
from pyxen.proto.xs_client import XsClient


class Disk(Backend):
    """The back end of a disk without an image, and its front end."""

    def __init__(self, guest, bus, path, front):
        super().__init__(bus, path, front)
        self.guest = guest
        guest.disks.append(self)
        bus.store.watch(f"{path}/state", lambda _: self.look())

    def look(self):
        if not self.guest.pauses:
            self.store.start(self.answer())

    async def answer(self):
        """What xen-blkfront does about the state of its back end."""
        words = self.guest.words
        state = await self.state_of(self.path)
        refused = "driverless" in words or (state == 5 and "busy" in words)
        wanted = {2: "3", 4: "4", 5: "6"}.get(state)
        if wanted and not refused and await self.state_of(self.front):
            await self.store.write(f"{self.front}/state", wanted)

    async def open(self):
        params = await self.text("params")
        if "none" in params:
            raise UserError(f"disk {params}: No such file or directory", "buy one")

    async def refresh(self):
        if await self.text("hotplug-status") == "":
            try:
                await self.open()
            except UserError as error:
                await self.hotplug_failed(error)
            else:
                await self.write({"hotplug-status": "connected"})
        return False

    async def connect(self): ...

    async def publish(self): ...

    async def disconnect(self): ...

    async def release(self): ...

    def close(self): ...


class Guest:
    def __init__(self, spec):
        self.spec = spec
        self.disks = []
        self.store = XsClient()
        disk = ("vbd", partial(Disk, self))
        self.bus = XenBus(self.store, spec["domid"], {"vbd": disk, "qdisk": disk}, print)
        self.words = spec["cmdline"].split()
        self.pauses = 0
        self.reason = None
        self.built = False
        self.console = b""
        self.consoles = []
        self.controls = []
        self.stopped = asyncio.Event()

    def say(self, data):
        self.console += data
        for writer in self.consoles:
            writer.write(data)

    def event(self, **message):
        for writer in self.controls:
            writer.write(json.dumps(message).encode() + b"\n")

    def end(self, reason):
        if self.reason is not None:
            return
        self.reason = reason
        self.say(f"guest: {reason}\r\n".encode())
        if reason == "crash":
            report = Path(self.spec["log_dir"]) / "crash.txt"
            report.write_text("RIP: the report\n")
            self.event(event="crash", report=str(report))
        self.event(event="shutdown", reason=reason)

    def run(self):
        self.say(b"guest: hello\r\n")
        for disk in self.disks:
            disk.look()
        for word in self.words:
            if word.startswith("end="):
                self.end(word[4:])

    def status(self):
        paused = self.pauses > 0
        down = self.reason is not None
        return {
            "state": {
                "running": False,
                "blocked": not (paused or down),
                "paused": paused,
                "shutdown": down,
                "crashed": self.reason == "crash",
                "dying": False,
            },
            "shutdown_reason": self.reason,
            "cpu_time_ns": 1_500_000_000,
            "memory_kib": self.spec["memory_kib"],
            "maxmem_kib": self.spec["maxmem_kib"],
            "vcpus_online": self.spec["vcpus"],
            "vcpus": [
                {
                    "id": vcpu,
                    "state": "blocked" if vcpu < self.spec["vcpus"] else "offline",
                    "cpu_time_ns": 0,
                }
                for vcpu in range(self.spec["maxvcpus"])
            ],
            "pause_count": self.pauses,
            "tty": "/dev/pts/77",
        }

    async def command(self, cmd):
        if cmd == "build":
            if "die" in self.words:
                print("fake: this is why it died", file=sys.stderr, flush=True)
                os._exit(3)
            if "refuse" in self.words:
                return {"error": {"message": "no such kernel", "hint": "buy one", "exit_code": 3}}
            if "hang" in self.words:
                await asyncio.Event().wait()
            self.pauses = 1
            return {"ok": {"store_mfn": 4242, "console_mfn": 4243, "tty": "/dev/pts/77"}}
        if cmd == "pause":
            self.pauses += 1
        elif cmd == "unpause":
            if not self.pauses:
                return {"error": {"message": "not paused", "hint": "", "exit_code": 1}}
            self.pauses -= 1
            if not self.pauses and self.reason is None:
                self.run()
        elif cmd == "destroy":
            asyncio.get_running_loop().call_soon(self.stopped.set)
        if cmd == "hypercalls":
            counts = {29: (7, 1), 11: (4, 4), 43: (1, 0), 63: (2, 2)}
            calls, failures = zip(*(counts.get(n, (0, 0)) for n in range(64)), strict=True)
            return {"ok": {"calls": calls, "failures": failures, "native": {"iret": 5}}}
        return {"ok": self.status() if cmd == "status" else {}}

    async def control(self, reader, writer):
        self.controls.append(writer)
        while line := await reader.readline():
            request = json.loads(line)
            answer = {"id": request["id"], **await self.command(request["cmd"])}
            writer.write(json.dumps(answer).encode() + b"\n")
        self.controls.remove(writer)

    async def user(self, reader, writer, replay):
        if replay:
            writer.write(self.console if replay < 0 else self.console[-replay:])
        self.consoles.append(writer)
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                self.say(data)
                for line in data.decode().splitlines():
                    if line.startswith("end "):
                        self.end(line[4:])
                    if line == "exit":
                        os._exit(7)
        self.consoles.remove(writer)

    async def xenstore(self, reader, writer):
        """A guest that shuts down when control/shutdown says so, as Linux does."""
        if "deaf" in self.words:
            await reader.read()
            return
        stream = xs.MessageStream()
        node = "control/shutdown"

        def ask(request):
            writer.write(xs.request_message(request, 1).pack())

        ask(xs.Watch(node, "t"))
        while data := await reader.read(4096):
            stream.feed(data)
            for message in stream:
                if message.op == xs.Op.WATCH_EVENT:
                    ask(xs.Read(node))
                elif message.op == xs.Op.READ and message.payload:
                    ask(xs.Write(node, b""))
                    self.end(message.payload.decode())

    async def backends(self, reader, writer):
        self.store.connect(writer.write)
        try:
            while data := await reader.read(4096):
                self.store.received(data)
        finally:
            self.store.disconnect(writer.write)

    async def trace(self, reader, writer, header):
        """What it was asked for, and a few lines; it ends when it is told to."""
        lines = [
            {"tracing": {"domid": 1, "name": "d1", "native": "traps" not in header["names"],
                         "paused": self.pauses > 0}},
            {"time_ns": 1_500_000, "vcpu": 0, "kind": "event", "nested": False,
             "text": json.dumps(header)},
            {"lost": 3},
            {"time_ns": 12_000_000_000, "vcpu": 1, "kind": "hypercall", "nested": True,
             "text": "stack_switch ss=0 -> 0"},
        ]  # fmt: skip
        if header["form"] == "count":
            counts = [
                ["event", "upcall", "", 2, 0, 0],
                ["hypercall", "sched_op", "poll", 4, 1, 9000],
            ]
            lines[1:] = [{"counts": counts, "elapsed_ns": 2_000_000_000}]
        for line in lines:
            writer.write(json.dumps(line).encode() + b"\n")
        if header["limit"] != 7:
            if header["limit"] != 2:
                await reader.readline()
            end = {"end": "limit" if header["limit"] else "stopped", "records": 5, "lost": 3}
            writer.write(json.dumps(end).encode() + b"\n")

    async def client(self, reader, writer):
        try:
            header = json.loads(await reader.readline())
            stream = header["stream"]
            if stream == "control":
                await self.control(reader, writer)
            elif stream == "console":
                await self.user(reader, writer, header["replay"])
            elif stream == "xenstore":
                await self.xenstore(reader, writer)
            elif stream == "backends":
                await self.backends(reader, writer)
            elif stream == "trace":
                await self.trace(reader, writer, header)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            writer.close()


async def main():
    spec = json.loads(sys.stdin.readline())
    guest = Guest(spec)
    sock = listen_unix(Path(spec["run_dir"]) / "control.sock")
    sock.setblocking(False)
    async with await asyncio.start_unix_server(guest.client, sock=sock):
        await guest.stopped.wait()
        for writer in guest.consoles:
            await writer.drain()


if __name__ == "__main__":
    started = time.monotonic()
    asyncio.run(main())
