"""Every case, on every engine."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pyxen.builder.kernel import KernelImage, load_kernel
from pyxen.types import U64

from .case import Case
from .cases import all_cases
from .conftest import ENGINES
from .expected_failures import EXPECTED_FAILURES
from .kernel import CaseKernel, assemble, why_not
from .pv_domain import Outcome, PvDomain

CASES = all_cases()
_missing = why_not()
pytestmark = pytest.mark.skipif(bool(_missing), reason=_missing)


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[CaseKernel, KernelImage]]:
    made = assemble(CASES, tmp_path_factory.mktemp("kernel"))
    yield made, load_kernel(made.path)


def _parameter(case: Case, engine: str) -> object:
    reason = EXPECTED_FAILURES.get((case.name, engine), "")
    marks = [pytest.mark.xfail(reason=reason, strict=True)] if reason else []
    return pytest.param(case, engine, id=f"{case.name}-{engine}", marks=marks)


@pytest.mark.parametrize(
    ("case", "engine"), [_parameter(case, engine) for case in CASES for engine in ENGINES]
)
def test_case(kernel: tuple[CaseKernel, KernelImage], case: Case, engine: str) -> None:
    made, image = kernel
    domain = PvDomain(image, made, native=engine == "unicorn-native", vcpus=case.vcpus)
    try:
        if engine == "unicorn-native" and not domain.engine.capabilities.native:
            pytest.skip(domain.engine.capabilities.detail)
        outcome = domain.run(case)
    finally:
        domain.close()
    _check(case, outcome)


def _check(case: Case, outcome: Outcome) -> None:
    said = f"{case.source}\n{outcome}"
    assert outcome.ending == "", said
    if case.crash:
        assert re.search(case.crash, outcome.crash), said
    else:
        assert outcome.crash == "", said
    assert _signed(outcome.words) == _signed(case.expect), said
    if not case.crash:
        assert outcome.reason == case.reason, said
    assert outcome.console == case.console, said


def _signed(words: tuple[int, ...]) -> list[str]:
    """Words as people read them: small numbers with a sign, the rest in hexadecimal."""
    shown = []
    for word in (word & U64 for word in words):
        signed = word - (1 << 64) if word >> 63 else word
        shown.append(str(signed) if -0x10000 < signed < 0x10000 else f"{word:#x}")
    return shown


def test_the_table_of_cases() -> None:
    names = [case.name for case in CASES]
    assert len(set(names)) == len(names)
    assert {name for name, _ in EXPECTED_FAILURES} <= set(names)
    assert len(names) >= 150
    assert all(case.source and (case.expect or case.crash or case.console) for case in CASES)
