"""Values of the `protocol` key: which ABI a front end's rings follow.

Source: public/io/protocols.h.
"""

_HEADERS = ("io/protocols.h",)

XEN_IO_PROTO_ABI_X86_32 = "x86_32-abi"
XEN_IO_PROTO_ABI_X86_64 = "x86_64-abi"
XEN_IO_PROTO_ABI_ARM = "arm-abi"
XEN_IO_PROTO_ABI_NATIVE = XEN_IO_PROTO_ABI_X86_64
