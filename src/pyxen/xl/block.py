"""xl block-attach, block-detach, block-list, cd-insert, cd-eject."""

from __future__ import annotations

import os
from typing import Any

from pyxen.errors import UserError
from pyxen.xend.client import Client
from pyxen.xl.command import Command, Globals, complain

HEADER = f"{'Vdev':<5} {'BE':<3} handle state evt-ch ring-ref {'BE-path':<30}"


def run_block_attach(command: Command, words: list[str], globals_: Globals) -> int:
    """xl block-attach."""
    from pyxen.config.disk import absolute_target, parse_disk
    from pyxen.config.json_output import to_plain, to_xl_json

    domain, *spec = command.parse(words).arguments
    with Client.connect() as xend:
        domid = xend.call("list", domains=[domain])[0]["domid"]
        disk = parse_disk(spec)
        if globals_.dry_run:
            print(f"disk: {to_xl_json(disk)}")
            return 0
        if disk.pdev_path:
            disk.pdev_path = absolute_target(disk.pdev_path)
        xend.call("block_attach", domain=domid, disk=to_plain(disk))
    return 0


def run_block_detach(command: Command, words: list[str], globals_: Globals) -> int:
    """xl block-detach."""
    given = command.parse(words)
    domain, vdev = given.arguments[:2]
    with Client.connect() as xend:
        xend.call("block_detach", domain=domain, vdev=vdev, force=given.has("f"))
    return 0


def run_block_list(command: Command, words: list[str], globals_: Globals) -> int:
    """xl block-list. A domain that is not there is worth a word, but no failure, as in Xen."""
    given = command.parse(words)
    print(HEADER)
    with Client.connect() as xend:
        for domain in given.arguments:
            try:
                disks = xend.call("block_list", domain=domain)
            except UserError as error:
                complain(error.message, error.hint)
                continue
            for disk in disks:
                print(disk_line(disk))
    return 0


def disk_line(disk: dict[str, Any]) -> str:
    """One disk's line of `xl block-list`."""
    return (
        f"{disk['devid']:<5} {0:<3} {disk['frontend_id']:<6} {disk['state']:<5} {disk['evtch']:<6} "
        f"{disk['rref']:<8} {disk['backend']:<30}"
    )


def run_cd_insert(command: Command, words: list[str], globals_: Globals) -> int:
    """xl cd-insert."""
    domain, vdev, path = command.parse(words).arguments[:3]
    with Client.connect() as xend:
        domid = xend.call("list", domains=[domain])[0]["domid"]
        if path and not os.path.exists(path):
            raise UserError(f"Cannot stat file: {path}", "name an image that is there")
        target = os.path.abspath(path) if path else ""
        xend.call("cd_insert", domain=domid, vdev=vdev, target=target)
    return 0


def run_cd_eject(command: Command, words: list[str], globals_: Globals) -> int:
    """xl cd-eject."""
    domain, vdev = command.parse(words).arguments[:2]
    with Client.connect() as xend:
        xend.call("cd_insert", domain=domain, vdev=vdev, target="")
    return 0
