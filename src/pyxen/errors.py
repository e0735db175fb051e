"""Errors that cross module boundaries."""

from pyxen.abi.errno import E


class XenError(Exception):
    """A refusal with one of Xen's error numbers; the hypercall dispatcher turns it into -errno.

    Source: public/errno.h.
    """

    def __init__(self, errno: E, why: str = "") -> None:
        super().__init__(f"{errno.cname}: {why}" if why else errno.cname)
        self.errno = errno


class UserError(Exception):
    """Something the user can put right: the message says what, `hint` says how.

    `exit_code` is what xl exits with in the same situation.
    """

    def __init__(self, message: str, hint: str = "", exit_code: int = 1) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


class DomainCrash(Exception):
    """The guest did something that Xen answers by crashing the domain."""
