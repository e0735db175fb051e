"""Give up every right but to read what is open already.

Each step is taken as far as the host allows it; the limits always are.
Source: prctl(2), unshare(2), landlock(7), capabilities(7).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import struct

MEMORY_BYTES = 1 << 30
CPU_SECONDS = 120
NOBODY = 65534

PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 4, 24, 38
CLONE_NEWNS, CLONE_NEWIPC, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x8000000, 0x10000000, 0x40000000
CAP_LAST = 63
CAPABILITY_VERSION_3 = 0x20080522
SYS_LANDLOCK_CREATE_RULESET, SYS_LANDLOCK_RESTRICT_SELF = 444, 446
LANDLOCK_ACCESS_FS_V1 = (1 << 13) - 1
EMPTY_DIRECTORY = "/proc/self/fdinfo"
"""Becomes the root directory: nothing can be made in it, and it is gone with the process."""


def confine() -> None:
    """Confine this process for good. What it needs must be imported and open by now."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    _limit()
    _leave_namespaces(libc)
    with contextlib.suppress(OSError):
        os.chroot(EMPTY_DIRECTORY)
        os.chdir("/")
    for capability in range(CAP_LAST + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    _become_nobody()
    libc.capset(struct.pack("<Ii", CAPABILITY_VERSION_3, 0), bytes(24))
    if libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "no_new_privs")
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    _refuse_paths(libc)


def _limit() -> None:
    for kind, limit in (
        (resource.RLIMIT_AS, MEMORY_BYTES),
        (resource.RLIMIT_CPU, CPU_SECONDS),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 32),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MEMLOCK, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (value, value))


def _leave_namespaces(libc: ctypes.CDLL) -> None:
    """No network, no System V IPC, mounts of its own. An ordinary user needs a user namespace."""
    spaces = CLONE_NEWNS | CLONE_NEWIPC | CLONE_NEWNET
    if libc.unshare(spaces) and libc.unshare(spaces | CLONE_NEWUSER):
        libc.unshare(CLONE_NEWUSER | CLONE_NEWNET)


def _become_nobody() -> None:
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)


def _refuse_paths(libc: ctypes.CDLL) -> None:
    """With Landlock, where the kernel has it: no file can be opened by a path."""
    rules = struct.pack("<Q", LANDLOCK_ACCESS_FS_V1)
    fd = libc.syscall(SYS_LANDLOCK_CREATE_RULESET, rules, len(rules), 0)
    if fd >= 0:
        libc.syscall(SYS_LANDLOCK_RESTRICT_SELF, fd, 0)
        os.close(fd)
