"""The numbers of Xen, each with a type of its own: a port is no index, an mfn no address."""

from typing import NewType

DomId = NewType("DomId", int)
Mfn = NewType("Mfn", int)
Pfn = NewType("Pfn", int)
Gfn = NewType("Gfn", int)
Port = NewType("Port", int)
GrantRef = NewType("GrantRef", int)
VcpuId = NewType("VcpuId", int)

PAGE_SHIFT = 12
PAGE_SIZE = 1 << PAGE_SHIFT
PAGE_MASK = PAGE_SIZE - 1

U16 = (1 << 16) - 1
U32 = (1 << 32) - 1
U64 = (1 << 64) - 1
