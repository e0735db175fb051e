"""From a configuration file to a DomainConfig: the recipe.

Settings that stand for themselves are stored as the schema says; what several settings decide
together is done by the steps.
"""

from collections.abc import Sequence

from pyxen.config import boot, device_lists, hvm, resources
from pyxen.config.cpus import Host
from pyxen.config.domain_config import DomainConfig, HvmInfo, PvhInfo, PvInfo
from pyxen.config.keyvalue import random_uuid
from pyxen.config.keyvalue import uuid as parse_uuid
from pyxen.config.number import LONG_MAX
from pyxen.config.parser import RawConfig, parse_file, parse_into
from pyxen.config.record import Record, choose
from pyxen.config.report import ConfigWarning, Report, nearest
from pyxen.config.schema import ACTIONS, KEYS, LATER_KEYS, OLD_KEYS, Key, Kind
from pyxen.config.settings import Settings

U32 = (1 << 32) - 1

_UNIONS = {"pv": PvInfo, "pvh": PvhInfo, "hvm": HvmInfo}


def load_domain_config(
    path: str, overrides: Sequence[str] = (), host: Host | None = None
) -> tuple[DomainConfig, list[ConfigWarning]]:
    """Read a domain's configuration file, and the `key=value` words of the command line after it.

    Args:   host: the CPUs that `cpus` means; this machine's by default.
    Raises: UserError; its exit code is xl's (3: cannot be read, 1: most others). All that is
            wrong with the settings is named at once.
    """
    raw = parse_file(path)
    for word in overrides:
        parse_into(raw, word, "command line")
    return interpret(raw, host or Host.detect())


def interpret(raw: RawConfig, host: Host) -> tuple[DomainConfig, list[ConfigWarning]]:
    """Give parsed settings their meaning. Raises: UserError, as `load_domain_config`."""
    report = Report()
    s = Settings(raw, report)
    cfg = DomainConfig(raw=raw)
    cfg.c_info.type = boot.guest_type(s)
    cfg.b_info.u = _UNIONS[cfg.c_info.type]()
    _warn_about_unknown_keys(s)
    _identity(cfg, s)
    for key in KEYS.values():
        _store(cfg, key, s)
    resources.read(cfg, s, host)
    _actions(cfg, s)
    boot.read(cfg, s)
    if isinstance(cfg.b_info.u, HvmInfo):
        hvm.read(cfg.b_info.u, s)
    device_lists.read(cfg, s)
    report.finish()
    return cfg, report.warnings


def _warn_about_unknown_keys(s: Settings) -> None:
    for name in s.raw.settings:
        if name in KEYS:
            continue
        if name in LATER_KEYS:
            s.warn(name, f"{name} came with a later Xen than 4.17; it is ignored")
        elif name not in OLD_KEYS:
            guess = nearest(name, tuple(KEYS))
            s.warn(name, f"there is no setting {name!r}{guess}; it is ignored")


def _identity(cfg: DomainConfig, s: Settings) -> None:
    cfg.c_info.name = s.string("name")
    if cfg.c_info.name is None:
        s.refuse("name", "the domain has no name", 'add a line such as name = "demo"')
    text = s.string("uuid")
    try:
        cfg.c_info.uuid = random_uuid() if text is None else parse_uuid(text)
    except ValueError as error:
        s.refuse("uuid", f"uuid: {text!r} must be {error}", "leave it out for a random one")
    init, label = s.string("init_seclabel"), s.string("seclabel")
    # With both, the first is the domain's while it is built and the second from then on.
    cfg.c_info.ssid_label = init if init is not None else label
    cfg.b_info.exec_ssid_label = label if init is not None else None


def _actions(cfg: DomainConfig, s: Settings) -> None:
    defaults = {"on_reboot": "restart", "on_soft_reset": "soft-reset"}
    for name in ("on_poweroff", "on_reboot", "on_watchdog", "on_crash", "on_soft_reset"):
        word = s.string(name)
        word = defaults.get(name, "destroy") if word is None else word
        if word in ACTIONS:
            setattr(cfg, name, ACTIONS[word])
        else:
            hint = f"use {', '.join(ACTIONS)}"
            s.refuse(name, f"{name}: there is no action {word!r}{nearest(word, (*ACTIONS,))}", hint)


def _store(cfg: DomainConfig, key: Key, s: Settings) -> None:
    """Store a setting that stands for itself."""
    record = _target(cfg, key.into)
    if record is None or s.raw.get(key.name) is None or key.kind in (Kind.STEP, Kind.IGNORED):
        return
    value: object = None
    match key.kind:
        case Kind.STRING:
            value = s.string(key.name)
        case Kind.NUMBER:
            value = _number(key, s)
        case Kind.BOOLEAN:
            value = s.boolean(key.name)
        case Kind.STRINGS:
            value = _strings(key, s)
        case Kind.CHOICE:
            value = _choice(key, s)
    if value is not None:
        setattr(record, key.into.rpartition(".")[2], value)


def _target(cfg: DomainConfig, path: str) -> Record | None:
    """Return the record that a schema path's last part is a field of; None if there is none."""
    root, *parts = path.split(".")[:-1] or [""]
    record: Record | None = None
    match root:
        case "c_info":
            record = cfg.c_info
        case "b_info":
            record = cfg.b_info
        case "sched":
            record = cfg.b_info.sched_params
        case "pv" | "pvh" | "hvm":
            record = cfg.b_info.u if cfg.type == root else None
    for part in parts:
        record = getattr(record, part, None)
    return record


def _number(key: Key, s: Settings) -> int | None:
    value = s.number(key.name)
    if value is None:
        return None
    if not key.low <= value <= min(key.high, LONG_MAX):
        unit = " MiB" if key.scale > 1 else ""
        s.refuse(key.name, f"{key.name}: {value} is not between {key.low} and {key.high}{unit}")
        return None
    return value * key.scale & U32 if key.low < 0 else value * key.scale


def _strings(key: Key, s: Settings) -> list[str] | None:
    if s.raw.get(key.name) is not None and not s.is_list(key.name):
        hint = f'write {key.name}=["…", "…"]'
        s.refuse(key.name, f"{key.name} must be a list", hint, key.exit_code)
        return None
    return s.strings(key.name)


def _choice(key: Key, s: Settings) -> str | None:
    text = s.string(key.name)
    if text is None:
        return None
    chosen = choose(text, key.choices)
    if chosen is None:
        message = f"{key.name}: there is no {text!r}{nearest(text, key.choices)}"
        s.refuse(key.name, message, f"use {', '.join(key.choices)}", key.exit_code)
    return chosen
