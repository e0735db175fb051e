"""Which Xen this is to a guest."""

XEN_MAJOR = 4
XEN_MINOR = 17
EXTRAVERSION = ".0-pyxen"
CAPABILITIES = "xen-3.0-x86_64 "
CHANGESET = "unavailable"
