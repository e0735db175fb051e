"""The `pyxen` command: what is pyxen's own and not Xen's."""
