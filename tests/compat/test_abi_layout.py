"""Every declaration in pyxen.abi, against the C headers of Xen 4.17.

One C program is made from the declarations and compiled against the headers ($PYXEN_XEN_HEADERS,
the directory that holds xen.h; or /usr/include/xen, Debian's libxen-dev). It prints sizes,
offsets, signedness and values; the tests compare them with what the Python modules say.
"""

import importlib
import os
import pkgutil
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import pyxen.abi
from pyxen.abi._struct import STRUCTS, Field, XenStruct
from pyxen.abi.errno import E
from pyxen.abi.io.xs_wire import XSD_ERRORS

DOMCTL_VERSION_OF_4_17 = 0x15
INSIDE_XEN_ONLY = (E.INTR, E.RESTART)
"""The header has them only while Xen itself is compiled: a guest never sees them."""


def abi_modules() -> list[ModuleType]:
    found = pkgutil.walk_packages(pyxen.abi.__path__, "pyxen.abi.")
    return [importlib.import_module(info.name) for info in found]


MODULES = abi_modules()
HEADER_MODULES = [m for m in MODULES if getattr(m, "_HEADERS", ())]
DECLARED = [s for s in STRUCTS if s.HEADER]


def constants(module: ModuleType) -> dict[str, int | str]:
    """Constants of a module that its header has too, by their C names."""
    excluded = getattr(module, "_NOT_IN_HEADER", {})
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, (int, str))
        and not re.match(r"_(?!_HYPERVISOR)", name)
        and name not in excluded
    }


def guest_errors() -> list[E]:
    return [errno for errno in E if errno not in INSIDE_XEN_ONLY]


def c_type(struct: type[XenStruct]) -> str:
    base, _, member = struct.C_NAME.partition(".")
    return f"__typeof__((({base} *)0)->{member})" if member else base


def c_field(struct: type[XenStruct], field: Field) -> Iterator[str]:
    """Statements that print offset, size and, for integers, whether it is signed."""
    designator = f"(({c_type(struct)} *)0)->{field.c_path}"
    key = f"{struct.__qualname__}.{field.name}"
    yield f'row("{key}.offset", offsetof({c_type(struct)}, {field.c_path}));'
    yield f'row("{key}.size", sizeof({designator}));'
    if field.layout.kind in ("int", "ints"):
        element = designator + ("[0]" if field.layout.kind == "ints" else "")
        yield f'row("{key}.signed", (__typeof__({element}))-1 < (__typeof__({element}))1);'


def c_statements() -> Iterator[str]:
    for struct in DECLARED:
        size = f"sizeof({c_type(struct)})"
        if struct.UNTIL:
            size = f"offsetof({c_type(struct)}, {struct.UNTIL})"
        yield f'row("{struct.__qualname__}.sizeof", {size});'
        for field in struct.FIELDS:
            yield from c_field(struct, field)
    for module in HEADER_MODULES:
        for name, value in constants(module).items():
            kind = "row" if isinstance(value, int) else "text"
            yield f'{kind}("{name}", {"(long long)" if kind == "row" else ""}({name}));'
    for errno in guest_errors():
        yield f'row("errno.{errno.cname}", XEN_{errno.cname});'
    yield "for (i = 0; i < sizeof(xsd_errors) / sizeof(xsd_errors[0]); i++)"
    yield '    printf("xsd_errors[%u] %s\\n", i, xsd_errors[i].errstring);'


def c_program(headers: Path) -> str:
    names = {name for module in HEADER_MODULES for name in module._HEADERS}
    names |= {struct.HEADER for struct in DECLARED}
    lines = ["#include <stddef.h>", "#include <stdint.h>", "#include <stdio.h>"]
    lines += ["#include <string.h>", "#include <errno.h>", "#define __XEN_TOOLS__ 1"]
    # Absolute paths: as a search directory this would hide the C library's sched.h and memory.h.
    lines += [f'#include "{headers / name}"' for name in ["xen.h", "errno.h", *sorted(names)]]
    lines += ['static void row(const char *k, long long v) { printf("%s %lld\\n", k, v); }']
    lines += ['static void text(const char *k, const char *v) { printf("%s %s\\n", k, v); }']
    return "\n".join([*lines, "int main(void) {", "unsigned i;", *c_statements(), "return 0; }"])


@pytest.fixture(scope="module")
def in_c(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the C compiler says, by key."""
    headers = Path(os.environ.get("PYXEN_XEN_HEADERS", "/usr/include/xen"))
    compiler = shutil.which("gcc")
    if not (headers / "xen.h").exists():
        pytest.skip(f"no Xen headers in {headers}; install libxen-dev or set PYXEN_XEN_HEADERS")
    if compiler is None:
        pytest.skip("no gcc to compile the headers with")
    version = re.search(
        r"XEN_DOMCTL_INTERFACE_VERSION\s+(0x\w+)", (headers / "domctl.h").read_text()
    )
    if version is None or int(version[1], 16) != DOMCTL_VERSION_OF_4_17:
        pytest.skip(f"the headers in {headers} are not those of Xen 4.17")
    work = tmp_path_factory.mktemp("abi")
    (work / "abi.c").write_text(c_program(headers))
    compiled = subprocess.run(
        [compiler, "-w", "-m64", "-o", work / "abi", work / "abi.c"], capture_output=True, text=True
    )
    assert compiled.returncode == 0, compiled.stderr
    out = subprocess.run([work / "abi"], check=True, capture_output=True, text=True).stdout
    return dict(line.split(" ", 1) for line in out.splitlines())


def test_everything_is_enumerated() -> None:
    """Guards the registry itself: a module or a structure that is not seen is not compared."""
    seen = {m.__name__.removeprefix("pyxen.abi.") for m in HEADER_MODULES}
    assert seen >= {"xen", "arch_x86", "event_channel", "grant_table", "io.blkif", "io.netif"}
    assert len({s.__qualname__ for s in STRUCTS}) == len(STRUCTS)
    for module in MODULES:
        if module.__name__.rpartition(".")[2] not in ("_struct", "errno", "io"):
            assert hasattr(module, "_HEADERS"), module.__name__
        for name, reason in getattr(module, "_NOT_IN_HEADER", {}).items():
            assert hasattr(module, name), f"{module.__name__} excludes {name}, which it has not"
            assert reason


@pytest.mark.parametrize("struct", DECLARED, ids=lambda s: s.__qualname__)
def test_structure(in_c: dict[str, str], struct: type[XenStruct]) -> None:
    name = struct.__qualname__
    ours: dict[str, int] = {f"{name}.sizeof": struct.SIZE}
    for field in struct.FIELDS:
        key = f"{name}.{field.name}"
        ours[f"{key}.offset"] = field.offset
        ours[f"{key}.size"] = field.layout.size
        if field.layout.kind in ("int", "ints"):
            ours[f"{key}.signed"] = int(field.layout.format[-1].islower())
    assert ours == {key: int(in_c[key]) for key in ours}


@pytest.mark.parametrize("module", HEADER_MODULES, ids=lambda m: m.__name__)
def test_constants(in_c: dict[str, str], module: ModuleType) -> None:
    ours = constants(module)
    theirs = {k: in_c[k] if isinstance(v, str) else int(in_c[k]) for k, v in ours.items()}
    bits = (1 << 64) - 1
    assert {k: v & bits if isinstance(v, int) else v for k, v in ours.items()} == {
        k: v & bits if isinstance(v, int) else v for k, v in theirs.items()
    }


def test_error_numbers(in_c: dict[str, str]) -> None:
    theirs = {e.cname: int(in_c[f"errno.{e.cname}"]) for e in guest_errors()}
    assert {e.cname: e.value for e in guest_errors()} == theirs


def test_xenstore_errors(in_c: dict[str, str]) -> None:
    theirs = {value for key, value in in_c.items() if key.startswith("xsd_errors[")}
    assert set(XSD_ERRORS) == theirs
