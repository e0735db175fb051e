"""What Xen says about itself: the arguments of HYPERVISOR_xen_version.

Source: public/version.h.
"""

from typing import Annotated

from pyxen.abi._struct import XenStruct, char, u32, u64, xen_struct

_HEADERS = ("version.h",)
_PUBLIC = "version.h"

# Commands of HYPERVISOR_xen_version. XENVER_version returns major << 16 | minor.
XENVER_version = 0
XENVER_extraversion = 1
XENVER_compile_info = 2
XENVER_capabilities = 3
XENVER_changeset = 4
XENVER_platform_parameters = 5
XENVER_get_features = 6
XENVER_pagesize = 7
XENVER_guest_handle = 8
XENVER_commandline = 9
XENVER_build_id = 10

# Sizes of the strings that are written whole.
XEN_EXTRAVERSION_LEN = 16

XEN_CAPABILITIES_INFO_LEN = 1024

XEN_CHANGESET_INFO_LEN = 64


@xen_struct("xen_compile_info_t", header=_PUBLIC, size=144)
class XenCompileInfo(XenStruct):
    """How Xen was built; each string ends at a zero byte."""

    compiler: Annotated[bytes, char(64)] = b""
    compile_by: Annotated[bytes, char(16)] = b""
    compile_domain: Annotated[bytes, char(32)] = b""
    compile_date: Annotated[bytes, char(32)] = b""


@xen_struct("xen_platform_parameters_t", header=_PUBLIC, size=8)
class XenPlatformParameters(XenStruct):
    """Where the part of the address space begins that guests may not use."""

    virt_start: u64 = 0


@xen_struct("xen_feature_info_t", header=_PUBLIC, size=8)
class XenFeatureInfo(XenStruct):
    """In: submap_idx; out: 32 bits of XENFEAT_*."""

    submap_idx: u32 = 0
    submap: u32 = 0


@xen_struct("xen_build_id_t", header=_PUBLIC, size=4)
class XenBuildId(XenStruct):
    """In: room behind this header; the id itself follows."""

    len: u32 = 0
