"""Measurements: the same kernel and initramfs on pyxen and on QEMU, in one run.

`make bench`, or `python -m bench`; docs/performance.md says how to read the numbers.
"""
