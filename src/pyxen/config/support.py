"""What of a configuration this build of pyxen honours; the reasons stand in the schema."""

from pyxen.config.domain_config import DomainConfig
from pyxen.config.parser import Atom, Value
from pyxen.config.schema import KEYS

GUEST_TYPES = ("pv",)
"""Guest types that can be run."""


def unsupported(cfg: DomainConfig) -> list[str]:
    """Return what cannot be honoured: one line "setting: reason" each, empty if nothing.

    A setting that asks for nothing (0, an empty string or list), or that means nothing for the
    guest's type, is not named.
    """
    lines = []
    if cfg.type not in GUEST_TYPES:
        lines.append(f"type: {cfg.type} guests cannot be run yet, only {', '.join(GUEST_TYPES)}")
    for name, setting in (cfg.raw.settings if cfg.raw else {}).items():
        key = KEYS.get(name)
        if key and key.unsupported and cfg.type in key.guests.value and _asks(setting.value):
            lines.append(f"{name}: {key.unsupported}")
    return lines


def _asks(value: Value) -> bool:
    return value.text not in ("", "0") if isinstance(value, Atom) else bool(value.items)
