"""All cases, one module a subject. Each module has a list CASES."""

from __future__ import annotations

from importlib import import_module
from pkgutil import iter_modules

from ..case import Case

MODULES = sorted(module.name for module in iter_modules(__path__))


def all_cases() -> list[Case]:
    """Every case of every module, in the order of the modules."""
    cases: list[Case] = []
    for name in MODULES:
        cases += import_module(f"{__name__}.{name}").CASES
    return cases
