"""Xen's public ABI: one module per public header, no behaviour.

Constants keep their C spelling. Structures are declared through `pyxen.abi._struct`; their names
are the C tags in CamelCase. tests/compat/test_abi_layout.py compares everything with the C headers.
"""
