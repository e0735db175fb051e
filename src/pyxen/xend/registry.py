"""The list of domains: their numbers, names and uuids, and the files that outlive xend."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator
from itertools import chain

from pyxen.errors import UserError
from pyxen.paths import Paths
from pyxen.types import DomId
from pyxen.xend.record import DomainRecord, JsonObject, write_whole

log = logging.getLogger(__name__)

HOST = DomId(0)
HOST_NAME = "Domain-0"
HOST_UUID = "00000000-0000-0000-0000-000000000000"

NAME_BYTES = 255

FIRST_RESERVED = 0x7FF0
"""DOMID_FIRST_RESERVED of public/xen.h: guests are numbered below it."""


class Registry:
    """Every domain that exists or is being made, except the host."""

    def __init__(self, paths: Paths) -> None:
        self._paths = paths
        self._records: dict[int, DomainRecord] = {}
        self.host_name = HOST_NAME

    def load(self) -> None:
        """Read what an earlier xend left. A file that cannot be read is reported and put aside."""
        for directory in self._paths.domains.iterdir():
            if not directory.name.isdigit():
                continue
            try:
                record = DomainRecord.load(directory)
                if record.domid != int(directory.name):
                    raise ValueError(f"{directory}: holds domain {record.domid}")
            except (OSError, ValueError) as error:
                log.error("put aside: %s", error)
                with contextlib.suppress(OSError):
                    directory.rename(directory.with_name(f"unreadable-{directory.name}"))
                continue
            self._records[record.domid] = record

    def __iter__(self) -> Iterator[DomainRecord]:
        return iter([self._records[domid] for domid in sorted(self._records)])

    def get(self, domid: int) -> DomainRecord | None:
        """The domain of this number, if it exists."""
        return self._records.get(domid)

    def named(self, name: str) -> DomainRecord | None:
        """The domain of this name, if it exists."""
        return next((r for r in self._records.values() if r.name == name), None)

    def users_of_uuid(self, uuid: str) -> list[DomainRecord]:
        """The domains with this uuid: more than one after a rename-restart."""
        return [r for r in self._records.values() if r.uuid == uuid]

    def add(
        self, name: str, uuid: str, config: JsonObject, *, namesake: int | None = None
    ) -> DomainRecord:
        """Number and enter a new domain. Refused before anything is made if the name is taken.

        `namesake` is the domid of the domain that this one replaces; it may keep the same uuid.
        """
        self.check_name(name)
        for other in self.users_of_uuid(uuid):
            if other.domid != namesake and uuid != HOST_UUID:
                raise UserError(
                    f"the uuid {uuid} belongs to {other.name!r} (domain {other.domid})",
                    "leave `uuid` out of the configuration and one is made",
                    3,
                )
        record = DomainRecord(self._next_domid(), name, uuid, config)
        self._records[record.domid] = record
        self.save(record)
        return record

    def check_name(self, name: str) -> None:
        """UserError unless a domain may take this name now."""
        if not 0 < len(name.encode()) <= NAME_BYTES or "\0" in name:
            raise UserError(f"a domain's name has 1 to {NAME_BYTES} bytes", exit_code=3)
        holder = self.named(name)
        if holder is None and name != self.host_name:
            return
        domid = holder.domid if holder else HOST
        raise UserError(
            f"a domain named {name!r} exists already (domain {domid})",
            f"choose another `name`, or end that one: xl destroy {domid}" if domid else "",
            3,
        )

    def save(self, record: DomainRecord) -> None:
        """Write the record down; call it after every change that must outlive xend."""
        record.save(self._paths.domain_dir(record.domid))

    def remove(self, domid: int) -> None:
        """Forget a domain; its number is not given out again."""
        if self._records.pop(domid, None) is not None:
            shutil.rmtree(self._paths.domain_dir(domid), ignore_errors=True)

    def _next_domid(self) -> DomId:
        """The next number never used here; after the last one, the lowest free one."""
        path = self._paths.state / "last-domid"
        try:
            last = int(path.read_text())
        except (OSError, ValueError):
            last = max(self._records, default=0)
        for domid in chain(range(last + 1, FIRST_RESERVED), range(1, FIRST_RESERVED)):
            if domid not in self._records:
                write_whole(path, f"{domid}\n")
                return DomId(domid)
        raise UserError("there are no domain numbers left", exit_code=3)
