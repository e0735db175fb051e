"""A xend of its own for each test, with stand-in domain processes, and xl to talk to it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pyxen
from pyxen.paths import Paths
from pyxen.xend.client import Client

HERE = Path(__file__).parent
SOURCE = Path(pyxen.__file__).parents[1]


def environment(home):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("XDG_", "PYXEN_"))}
    return {**env, "PYXEN_HOME": str(home), "PYTHONPATH": str(SOURCE)}


def config(name="d1", cmdline="", **more):
    """libxl's JSON of a small PV guest; on_… are passed through."""
    uuid = more.pop("uuid", f"00000000-0000-0000-0000-{abs(hash(name)) % 10**12:012}")
    vcpus = more.pop("max_vcpus", 1)
    return {
        "c_info": {"type": "pv", "name": name, "uuid": uuid},
        "b_info": {
            "max_vcpus": vcpus,
            "avail_vcpus": [0],
            "max_memkb": 131072,
            "target_memkb": 65536,
            "kernel": "/boot/vmlinuz",
            "cmdline": cmdline,
            "type.pv": {},
        },
        **more,
    }


class Host:
    """PYXEN_HOME, and whatever runs in it."""

    def __init__(self, home, *, spare=False):
        self.spare = spare
        self.home = home
        self.paths = Paths(home, home / "run")
        self.process = None
        self.domain_pids = set()

    def start(self):
        """Start xend and wait until it answers."""
        self.paths.make()
        read, write = os.pipe()
        with open(self.paths.xend_log, "ab") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, HERE / "run_xend.py", self.paths.state, self.paths.run),
                    *(
                        str(write),
                        "spare" if self.spare else "alone",
                        sys.executable,
                        HERE / "fake_domain.py",
                    ),
                ],
                env=environment(self.home),
                pass_fds=[write],
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        os.close(write)
        with open(read, "rb") as ready:
            assert ready.read() == b"ready\n", self.log()
        return self

    def log(self):
        return self.paths.xend_log.read_text()

    def kill(self):
        """SIGKILL, as the out-of-memory killer would."""
        self.process.kill()
        self.process.wait()

    def stop(self):
        """End xend in an orderly way."""
        self.process.terminate()
        assert self.process.wait(20) == 0, self.log()

    def client(self):
        return Client.connect(self.paths, start=False)

    def call(self, op, **params):
        with self.client() as xend:
            return xend.call(op, **params)

    def create(self, *args, paused=False, monitor=True, **more):
        """Create a domain; returns its domid."""
        made = self.call("create", config=config(*args, **more), paused=paused, monitor=monitor)
        self.domain_pids.add(self.record(made["domid"])["pid"])
        return made["domid"]

    def record(self, domid):
        return json.loads((self.paths.domain_dir(domid) / "domain.json").read_text())

    def records(self):
        return [json.loads(p.read_text()) for p in self.paths.domains.glob("*/domain.json")]

    def entry(self, domid):
        return self.call("list", domains=[domid])[0]

    def names(self):
        return [entry["name"] for entry in self.call("list")[1:]]

    def xl_command(self, *words):
        return [sys.executable, "-m", "pyxen.xl", *words]

    def xl(self, *words, stdin=None, timeout=60):
        """Run xl to its end."""
        return subprocess.run(
            self.xl_command(*words),
            env=environment(self.home),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    def xl_start(self, *words, **options):
        """Start xl and leave it running."""
        return subprocess.Popen(
            self.xl_command(*words), env=environment(self.home), text=True, **options
        )

    def close(self):
        """End everything that was started here, and see that nothing stays."""
        if self.process is not None and self.process.poll() is None:
            self.stop()
        for record in self.records() if self.paths.domains.exists() else []:
            self.domain_pids.add(record["pid"])
        for pid in self.domain_pids - {0}:
            if belongs_to(pid, self.home):
                os.kill(pid, signal.SIGKILL)


def belongs_to(pid, home):
    """Whether this process is one of ours: pids are recycled."""
    try:
        env = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return False
    return f"PYXEN_HOME={home}".encode() in env.split(b"\0")


def processes(home):
    """Every process that runs in this PYXEN_HOME."""
    pids = [int(p.name) for p in Path("/proc").iterdir() if p.name.isdigit()]
    return [pid for pid in pids if belongs_to(pid, home)]
