"""PCI devices for passthrough: the `pci` setting and the words of `xl pci-attach`.

    [domain:]bus:device.function[@slot],key=value,…     numbers in hexadecimal
    name=…,key=value,…                                   a device made assignable under a name

Source: xl-pci-configuration(5).
"""

import re

from pyxen.config.devices import Pci
from pyxen.config.keyvalue import Entry, any_case, apply, text
from pyxen.config.number import leading
from pyxen.errors import UserError

EXIT_CODE = 6
ALL_FUNCTIONS = 0xFF
"""LIBXL_PCI_FUNC_ALL: the mask that "*" as function stands for."""

_BDF = re.compile(
    r"(?:([0-9a-fA-F]{1,8}):)?([0-9a-fA-F]{1,8}):([0-9a-fA-F]{1,8})\.(\*|[0-9a-fA-F]{1,8})"
)
_SLOT = re.compile("([0-9a-fA-F]{1,8})")


def _flag(value: str) -> bool:
    return leading(value, 10) != 0


_TABLE = {
    "permissive": Entry("permissive", _flag),
    "msitranslate": Entry("msitranslate", _flag),
    "seize": Entry("seize", _flag),
    "power_mgmt": Entry("power_mgmt", _flag),
    "rdm_policy": Entry("rdm_policy", any_case("strict", "relaxed")),
    "name": Entry("name", text),
}


def parse_pci(spec: str, defaults: Pci) -> Pci:
    """Read one device; what the specification does not name is as in `defaults`.

    Raises: UserError (exit code 6, as xl's).
    """
    pci = Pci(**vars(defaults))
    head, _, rest = spec.partition(",")
    found = _BDF.match(head)
    try:
        if found:
            _set_bdf(pci, found)
            _set_slot(pci, head[found.end() :])
        else:
            rest = spec
        for word in filter(None, rest.split(",")):
            key, _, value = word.partition("=")
            if key == "bdf" and (match := _BDF.fullmatch(value)):
                found = match
                _set_bdf(pci, match)
            elif key == "vslot":
                _set_slot(pci, "@" + value)
            else:
                apply(pci, _TABLE, word, "pci")
        if bool(found) == bool(pci.name):
            raise ValueError("it needs an address such as 0000:00:1f.0, or a name")
    except (ValueError, UserError) as error:
        hint = error.hint if isinstance(error, UserError) else "xl-pci-configuration(5)"
        raise UserError(f"pci device {spec!r}: {error}", hint, EXIT_CODE) from error
    return pci


def _set_bdf(pci: Pci, match: re.Match[str]) -> None:
    domain, bus, device = (int(part or "0", 16) for part in match.groups()[:3])
    function = 0 if match[4] == "*" else int(match[4], 16)
    if domain > 0xFFFF or bus > 0xFF or device > 0x1F or function > 7:
        raise ValueError(f"{match[0]} is no address: bus ff, device 1f and function 7 are the most")
    pci.domain, pci.bus, pci.dev, pci.func = domain, bus, device, function
    pci.vfunc_mask = ALL_FUNCTIONS if match[4] == "*" else 1


def _set_slot(pci: Pci, suffix: str) -> None:
    if not suffix:
        return
    match = _SLOT.fullmatch(suffix[1:])
    if suffix[0] != "@" or match is None or int(match[1], 16) > 0x1F:
        raise ValueError(f"{suffix[1:]!r} is no slot of the guest's bus, which are 0 to 1f")
    pci.vdevfn = int(match[1], 16) << 3
