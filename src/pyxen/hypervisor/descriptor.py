"""Which segment descriptors a guest may have in its GDT and LDT.

Source: check_descriptor of xen/arch/x86/pv/descriptor-tables.c; Intel SDM volume 3, 3.4.5.
"""

from __future__ import annotations

_PRESENT = 1 << 47
_NOT_SYSTEM = 1 << 44
_CODE = 1 << 43
_CODE_CONFORMING = 1 << 42
_KIND = 0xF << 40


def is_allowed_descriptor(descriptor: int) -> bool:
    """Whether a guest may have this descriptor: code and data at its own privilege, or absent.

    No system descriptors or gates, no conforming code (check_descriptor of
    xen/arch/x86/pv/descriptor-tables.c). Guests write level 0 or 1 for their kernel segments;
    whether these work is decided when they are loaded.
    """
    if not descriptor & _PRESENT:
        return True
    if not descriptor & _NOT_SYSTEM:
        return descriptor & _KIND == 0
    return not (descriptor & _CODE and descriptor & _CODE_CONFORMING)
