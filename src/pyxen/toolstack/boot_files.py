"""Kernel and ramdisk of a domain that has a boot loader."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from pyxen.bootloader.boot import BOOTLOADER_LOG, booted, bootloader_of
from pyxen.errors import UserError
from pyxen.toolstack import libxl_json
from pyxen.xend.daemon import Xend
from pyxen.xend.record import JsonObject


@contextlib.asynccontextmanager
async def boot_files(
    xend: Xend, config: JsonObject, given: JsonObject | None
) -> AsyncIterator[JsonObject | None]:
    """`kernel`, `ramdisk` and `cmdline` to start with; None if they are the configuration's own.

    What xl's run of the boot loader found is `given`. When a domain is started again there is
    none: the boot loader is run here, without a terminal, in a thread. Raises UserError.
    """
    if given is not None:
        yield _checked(given)
        return
    if bootloader_of(config) is None:
        yield None
        return
    log = xend.paths.domain_logs(libxl_json.name_of(config)) / BOOTLOADER_LOG
    context = booted(config, xend.paths.run, log)
    running = asyncio.get_running_loop().run_in_executor(None, context.__enter__)
    try:
        found = await asyncio.shield(running)
    except asyncio.CancelledError:
        running.add_done_callback(
            lambda done: done.exception() or context.__exit__(None, None, None)
        )
        raise
    try:
        yield {"kernel": found.kernel, "ramdisk": found.ramdisk, "cmdline": found.args}
    finally:
        context.__exit__(None, None, None)


def _checked(given: JsonObject) -> JsonObject:
    texts = (given.get("kernel"), given.get("ramdisk") or "", given.get("cmdline") or "")
    if not all(isinstance(text, str) for text in texts):
        raise UserError("create: what the boot loader found is no text", "", libxl_json.FAILED)
    kernel, ramdisk, cmdline = texts
    return {"kernel": kernel, "ramdisk": ramdisk or None, "cmdline": cmdline}
