"""That the kernel around the cases works."""

from __future__ import annotations

from pyxen.abi.errno import E

from ..case import NONE, Case

CASES = [
    Case(
        "smoke/report",
        "nothing of Xen: the words of the cases",
        "report $42\nreport $-1\nreport case_entry",
        (42, -1 & (1 << 64) - 1, 0),
    ),
    Case("smoke/print", "xen/include/public/io/console.h: the ring", "print @text, 6", (), "@text: .ascii \"hello\\n\"", console=b"hello\n"),
    Case("smoke/trap", "ud2 is trap 6 without an error code", "expecting @1\nud2\n@1: report_trap", (6, NONE)),
    Case("smoke/user", "a system call", "expecting @1\nto_user @u\n@1: report syscall_rax\nreport trap_vector", (77, 0x100), user="@u: mov $77, %eax\nsyscall"),
    Case("smoke/hyper", "a refused hypercall", "result_of event_channel_op, $9999, $0", (-E.NOSYS.value,)),
]
