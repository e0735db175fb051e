"""Print docs/xl.cfg.md: which settings of xl.cfg are honoured. From the schema, so that it is true.

Usage: PYTHONPATH=src python scripts/config_keys.py > docs/xl.cfg.md
"""

from __future__ import annotations

from pyxen.config.schema import KEYS, LATER_KEYS, OLD_KEYS, Guests, Key, Kind
from pyxen.config.support import GUEST_TYPES

HEAD = """\
# xl.cfg

This page is made by `scripts/config_keys.py` from `src/pyxen/config/schema.py`. The syntax and the
meaning of the settings are those of xl.cfg(5) of Xen 4.17; `xl create -n FILE` shows how a file is
understood, as the JSON that real xl prints.

## How a setting is answered

| the setting | the answer |
|---|---|
| is honoured | nothing is said |
| cannot be honoured yet | `xl create` refuses with exit code 3, and says why |
| means nothing for this guest type | nothing is said, as with xl |
| came with a later Xen | a warning; it is ignored, as xl 4.17 does |
| is unknown | a warning that names the nearest known one; it is ignored |
| has a bad value | refused with file, line and column; exit code as xl's |

A setting that asks for nothing (0, an empty string, an empty list) is never refused. Guest types
that can be run: {types}.
"""


def rows(keys: list[Key]) -> list[str]:
    """Table rows: name, meaning."""
    return [f"| `{key.name}` | {key.doc} |" for key in keys]


def section(title: str, head: str, lines: list[str]) -> str:
    """A section with one table."""
    columns = head.count("|") - 1
    return "\n".join([f"## {title}", "", head, "|" + "---|" * columns, *lines, ""])


def matters(key: Key) -> bool:
    """Whether the setting means something for a guest type that can be run."""
    return bool(set(key.guests.value) & set(GUEST_TYPES))


def main() -> None:
    """Print the page."""
    keys = list(KEYS.values())
    ours = [key for key in keys if matters(key)]
    idle = [key for key in ours if not key.unsupported and not key.into and key.kind is Kind.STEP]
    honoured = [
        key
        for key in ours
        if not key.unsupported and key.kind is not Kind.IGNORED and key not in idle
    ]
    refused = [key for key in ours if key.unsupported]
    without_effect = [key.name for key in ours if key.kind is Kind.IGNORED]
    others = {
        kind: [k.name for k in keys if k.guests is kind and not matters(k)] for kind in Guests
    }
    print(HEAD.format(types=", ".join(f"`{kind}`" for kind in GUEST_TYPES)))
    print(section("Honoured", "| setting | meaning |", rows(honoured)))
    reasons = [f"| `{key.name}` | {key.doc} | {key.unsupported} |" for key in refused]
    print(section("Refused for now", "| setting | meaning | why |", reasons))
    print("## Read, and without effect for these guests\n")
    for kind, names in others.items():
        if names:
            types = "/".join(kind.value).upper() or "ARM"
            print(f"- {types} only: {listed(names)}")
    print(f"- only together with a setting that is refused: {listed([key.name for key in idle])}")
    print(f"- known to xl, without effect there too: {listed(without_effect)}")
    print(f"- of older tool stacks: {listed(list(OLD_KEYS))}")
    print(f"- of a later Xen: {listed(list(LATER_KEYS))}")


def listed(names: list[str]) -> str:
    """Names as code, with commas."""
    return ", ".join(f"`{name}`" for name in names)


if __name__ == "__main__":
    main()
