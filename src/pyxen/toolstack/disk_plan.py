"""What a disk of the configuration becomes: its number, its kind of back end, its nodes.

Source: xl-disk-configuration(5); the nodes as libxl_disk.c writes them. A disk is libxl's JSON of a
libxl_device_disk; a key that has its default may be absent.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyxen.abi.io.protocols import XEN_IO_PROTO_ABI_X86_64
from pyxen.abi.io.xenbus import XenbusStateInitialising
from pyxen.config.vdev import vdev_number
from pyxen.errors import UserError
from pyxen.proto.xs import XENSTORE_ABS_PATH_MAX, domain_path
from pyxen.xend.record import JsonObject
from pyxen.xend.registry import HOST_NAME

_QDISK_FORMATS = {"raw": "aio", "empty": "aio", "qcow": "qcow", "qcow2": "qcow2"} | {
    "vhd": "vhd",
    "qed": "qed",
}
"""How libxl writes a format into a qdisk's params."""


@dataclass(frozen=True, slots=True)
class DiskPlan:
    """A disk that can be attached. kind: vbd for raw images, qdisk for all others, as in libxl.

    config: what is kept of it, and shown by `xl list -l`.
    """

    vdev: str
    devid: int
    kind: str
    target: str
    format: str
    is_cdrom: bool
    config: JsonObject

    @property
    def params(self) -> str:
        """Its medium, as it stands in the node `params`."""
        return params(self.kind, self.format, self.target)

    def back(self, domid: int) -> str:
        """The back end's directory."""
        return f"{domain_path(0)}/backend/{self.kind}/{domid}/{self.devid}"

    def back_nodes(self, domid: int) -> dict[str, str]:
        """The back end's nodes; /libxl has the same."""
        disk = self.config
        is_writable = bool(disk.get("readwrite", 0))
        discard = str(disk.get("discard_enable", is_writable)) == "True"
        nodes = {
            "frontend": front(domid, self.devid),
            "params": self.params,
            "frontend-id": str(domid),
            "online": "1",
            "removable": "1" if disk.get("removable") else "0",
            "bootable": "1",
            "state": str(XenbusStateInitialising),
            "dev": self.vdev,
            "type": "phy" if self.kind == "vbd" else "qdisk",
            "mode": "w" if is_writable else "r",
            "device-type": "cdrom" if self.is_cdrom else "disk",
            "discard-enable": "1" if discard else "0",
            "specification": "xen",
        }
        if disk.get("direct_io_safe"):
            nodes["direct-io-safe"] = "1"
        return nodes

    def front_nodes(self, domid: int) -> dict[str, str]:
        """The front end's nodes."""
        return {
            "backend": self.back(domid),
            "backend-id": "0",
            "state": str(XenbusStateInitialising),
            "virtual-device": str(self.devid),
            "device-type": "cdrom" if self.is_cdrom else "disk",
            "trusted": "1" if str(self.config.get("trusted", True)) == "True" else "0",
            "protocol": XEN_IO_PROTO_ABI_X86_64,
        }


def front(domid: int, devid: int) -> str:
    """The front end's directory."""
    return f"{domain_path(domid)}/device/vbd/{devid}"


def shadow(domid: int, devid: int) -> str:
    """The tool stack's own directory of it."""
    return f"/libxl/{domid}/device/vbd/{devid}"


def params(kind: str, image_format: str, target: str) -> str:
    """A medium as the back end reads it."""
    return target if kind == "vbd" else f"{_QDISK_FORMATS[image_format]}:{target}"


def plan_disks(config: JsonObject, exit_code: int) -> list[DiskPlan]:
    """The disks of a domain's configuration. UserError if one of them cannot be had."""
    disks = config.get("disks", [])
    if not isinstance(disks, list) or not all(isinstance(disk, dict) for disk in disks):
        raise UserError("configuration: disks is no list of objects", exit_code=exit_code)
    plans = [plan_disk(disk, exit_code) for disk in disks]
    seen: dict[int, str] = {}
    for plan in plans:
        if plan.devid in seen:
            raise UserError(
                f"disk {plan.vdev}: {seen[plan.devid]} is the same device",
                "give each disk its own vdev",
                exit_code,
            )
        seen[plan.devid] = plan.vdev
    return plans


def plan_disk(disk: JsonObject, exit_code: int = 1) -> DiskPlan:
    """One disk. UserError if it cannot be had: what it asks for, and what to do instead."""
    vdev = str(disk.get("vdev") or "")
    target = str(disk.get("pdev_path") or "")
    image_format = str(disk.get("format") or "raw").replace("unknown", "raw")
    is_cdrom = bool(disk.get("is_cdrom"))
    refusal = _refusal(disk, image_format, target, is_cdrom=is_cdrom)
    if refusal is not None:
        message, hint = refusal
        raise UserError(f"disk {vdev}: {message}", hint, exit_code)
    try:
        devid = vdev_number(vdev)
    except UserError as error:
        raise UserError(error.message, error.hint, exit_code) from None
    is_raw = image_format == "raw" and disk.get("backend") != "qdisk"
    return DiskPlan(
        vdev, devid, "vbd" if is_raw else "qdisk", target, image_format, is_cdrom, dict(disk)
    )


def _refusal(
    disk: JsonObject, image_format: str, target: str, *, is_cdrom: bool
) -> tuple[str, str] | None:
    """Why a disk cannot be had: message and hint."""
    backend = disk.get("backend") or "unknown"
    if disk.get("backend_domname") not in (None, "", "0", HOST_NAME):
        return (
            f"back ends are on the host only, not in domain {disk['backend_domname']!r}",
            "leave out `backend=`",
        )
    if disk.get("specification") == "virtio" or backend == "standalone":
        return "guests have Xen's block devices only, no virtio ones", "use `specification=xen`"
    if str(disk.get("colo_enable")) == "True":
        return "COLO does not exist here", "leave out `colo`"
    if backend == "tap":
        return "there is no blktap, as in Xen since 4.13", "leave out `backendtype=`"
    if disk.get("script"):
        return (
            f"block scripts are not run ({disk['script']})",
            "attach what it would set up to the host, and name it as the target",
        )
    if image_format == "empty":
        if not is_cdrom:
            return "it is empty and no CD-ROM", "name a target, or write `devtype=cdrom`"
        if target:
            return f"it is empty and has a target, {target}", "leave one of them out"
    elif image_format not in _QDISK_FORMATS:
        return f"no images of format {image_format!r}", f"use {', '.join(_QDISK_FORMATS)}"
    elif not target:
        return "it has no target", "say where the data is: target=/path/of/image"
    elif len(target) > XENSTORE_ABS_PATH_MAX or "\0" in target:
        return "its target is too long", "use a path of at most 3072 bytes"
    if backend == "phy" and image_format != "raw":
        return f"`phy` has raw images only, no {image_format}", "leave out `backendtype=`"
    return None
