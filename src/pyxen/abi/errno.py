"""Xen's error numbers. Source: public/errno.h."""

from enum import IntEnum


class E(IntEnum):
    """Error numbers without their leading letter E; `cname` has it."""

    PERM = 1
    NOENT = 2
    SRCH = 3
    INTR = 4
    IO = 5
    NXIO = 6
    TOO_BIG = 7
    NOEXEC = 8
    BADF = 9
    CHILD = 10
    AGAIN = 11
    NOMEM = 12
    ACCES = 13
    FAULT = 14
    BUSY = 16
    EXIST = 17
    XDEV = 18
    NODEV = 19
    NOTDIR = 20
    ISDIR = 21
    INVAL = 22
    NFILE = 23
    MFILE = 24
    NOSPC = 28
    ROFS = 30
    MLINK = 31
    DOM = 33
    RANGE = 34
    DEADLK = 35
    NAMETOOLONG = 36
    NOLCK = 37
    NOSYS = 38
    NOTEMPTY = 39
    NODATA = 61
    TIME = 62
    BADMSG = 74
    OVERFLOW = 75
    ILSEQ = 84
    RESTART = 85
    NOTSOCK = 88
    MSGSIZE = 90
    OPNOTSUPP = 95
    ADDRINUSE = 98
    ADDRNOTAVAIL = 99
    NOBUFS = 105
    ISCONN = 106
    NOTCONN = 107
    TIMEDOUT = 110
    CONNREFUSED = 111

    @property
    def cname(self) -> str:
        """The name in the C header, as `EINVAL`."""
        return "E2BIG" if self is E.TOO_BIG else f"E{self.name}"
