"""What a guest is and what it starts: its type, kernel, command line, boot loader and clocks."""

from pyxen.config.domain_config import DomainConfig
from pyxen.config.record import choose
from pyxen.config.report import nearest
from pyxen.config.schema import ALTP2M_MODES, TIMER_MODES, TSC_MODES
from pyxen.config.settings import Settings

FIRMWARE_DIRECTORY = "/usr/lib/xen/boot"
"""Where xl's short names pvgrub32 and pvgrub64 are looked up."""

_TYPES = ("hvm", "pv", "pvh")
_BUILDERS = {"hvm": "hvm", "generic": "pv"}


def guest_type(s: Settings) -> str:
    """Return "pv", "pvh" or "hvm"; "pv" when the settings do not say, or say it wrongly.

    As xl does, it takes a beginning of the word too.
    """
    text, builder = s.string("type"), s.string("builder")
    chosen = _beginning(text, _TYPES)
    built = _beginning(builder, tuple(_BUILDERS))
    if text is not None and chosen is None:
        guess = nearest(text, _TYPES)
        s.refuse("type", f"there is no guest type {text!r}{guess}", "use pv, pvh or hvm")
    if builder is not None and built is None:
        s.refuse("builder", f"there is no builder {builder!r}", "use type = pv, pvh or hvm instead")
    elif chosen and built and chosen != _BUILDERS[built]:
        message = f"builder={built!r} and type={chosen!r} contradict each other"
        s.refuse("builder", message, "remove builder, type says it all")
    return chosen or (_BUILDERS[built] if built else "pv")


def _beginning(text: str | None, words: tuple[str, ...]) -> str | None:
    return next((word for word in words if text and word.startswith(text)), None)


def read(cfg: DomainConfig, s: Settings) -> None:
    """Read everything that decides how the guest starts."""
    cfg.b_info.cmdline = _command_line(s)
    _bootloader_args(cfg, s)
    _tsc_mode(cfg, s)
    _timer_mode(cfg, s)
    _altp2m(cfg, s)
    for name, message in (
        ("vncviewer", "xl opens no viewer by itself; use xl create -V"),
        ("vif2", "netchannel2 is gone; use vif"),
        ("device_model", "it is ignored; device_model_override names another device model"),
    ):
        if s.raw.get(name):
            s.warn(name, f"{name}: {message}")
    if cfg.type != "hvm":
        _pv_firmware(cfg, s)
        if cfg.b_info.kernel is None and cfg.b_info.bootloader is None:
            hint = 'add kernel = "/path/to/vmlinuz"'
            s.refuse("kernel", "the domain has neither a kernel nor a bootloader", hint)
    elif (cfg.b_info.kernel or "").rpartition("/")[2] == "hvmloader":
        s.warn("kernel", "hvmloader is no kernel; firmware_override names another firmware")
        cfg.b_info.kernel = None


def _command_line(s: Settings) -> str | None:
    cmdline, root, extra = s.string("cmdline"), s.string("root"), s.string("extra")
    if cmdline is not None:
        if root is not None or extra is not None:
            s.warn("cmdline", "cmdline is there, so root and extra are ignored")
        return cmdline
    if root is None:
        return extra
    return f"root={root}" if extra is None else f"root={root} {extra}"


def _bootloader_args(cfg: DomainConfig, s: Settings) -> None:
    if s.is_list("bootloader_args"):
        cfg.b_info.bootloader_args = s.strings("bootloader_args") or []
    elif (text := s.string("bootloader_args")) is not None:
        s.warn("bootloader_args", "bootloader_args should be a list, one item an argument")
        cfg.b_info.bootloader_args = text.split()


def _numbered_choice(
    s: Settings, name: str, choices: tuple[str, ...], exit_code: int
) -> str | None:
    """Read one of `choices`, which old files name by number."""
    if s.raw.get(name) is None:
        return None
    number = s.number(name, quiet=True)
    text = s.string(name)
    if number is not None and 0 <= number < len(choices):
        s.warn(name, f'{name} should be a name: {name}="{choices[number]}"')
        return choices[number]
    chosen = choose(text, choices) if text is not None and number is None else None
    if chosen is None and text is not None:
        message = f"{name}: there is no {text!r}{nearest(text, choices)}"
        s.refuse(name, message, f"use {', '.join(choices)}", exit_code)
    return chosen


def _tsc_mode(cfg: DomainConfig, s: Settings) -> None:
    cfg.b_info.tsc_mode = _numbered_choice(s, "tsc_mode", TSC_MODES, 1) or "default"


def _timer_mode(cfg: DomainConfig, s: Settings) -> None:
    if s.raw.get("timer_mode") and cfg.type == "pv":
        s.refuse("timer_mode", "timer_mode means nothing for a PV guest", "remove the line", 3)
        return
    cfg.b_info.timer_mode = _numbered_choice(s, "timer_mode", TIMER_MODES, 1) or "unknown"


def _altp2m(cfg: DomainConfig, s: Settings) -> None:
    cfg.b_info.altp2m = _numbered_choice(s, "altp2m", ALTP2M_MODES, 1) or "disabled"


def _pv_firmware(cfg: DomainConfig, s: Settings) -> None:
    text = s.string("firmware")
    if text is None:
        return
    if cfg.b_info.kernel is not None:
        s.refuse("firmware", "both kernel and firmware say what to start", "remove one of them")
    elif _beginning(text, ("pvgrub32", "pvgrub64")) is None:
        s.refuse("firmware", f"there is no firmware {text!r} for PV", "use pvgrub32 or pvgrub64")
    else:
        cfg.b_info.kernel = f"{FIRMWARE_DIRECTORY}/{text}.bin"
