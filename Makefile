# Two commands do everything on a fresh Debian 12 machine: `make demo` and `make test`.
VENV   := .venv
PYTHON ?= python3
RUN    := $(VENV)/bin
DEMO   := demo

.PHONY: demo test check bench fuzz integrity install clean

demo: $(VENV)/.installed
	@sh scripts/demo.sh $(RUN) $(DEMO)

# Everything: the checks, and real kernels end to end. PYXEN_TEST_DEBIAN=1: a Debian disk, too.
test: check
	PYXEN_TEST_FETCH=1 $(RUN)/python -m pytest -q tests --ignore=tests/unit --ignore=tests/protocol

# Formatter, linter, types, import directions, and the tests that boot no kernel.
check: $(VENV)/.dev
	$(RUN)/ruff format --check -q src tests bench
	$(RUN)/ruff check -q src tests bench
	$(RUN)/mypy --no-error-summary src/pyxen
	$(RUN)/python scripts/check_imports.py src/pyxen
	$(RUN)/python -m pytest -q tests/unit tests/protocol

bench: $(VENV)/.dev
	$(RUN)/python -m bench $(BENCH)

# A hostile guest, for a while: make fuzz FUZZ="--seconds 600 --seed 7"
fuzz: $(VENV)/.dev
	$(RUN)/python -m tests.fuzz $(FUZZ)

# Random work on a guest's disk against a model: make integrity INTEGRITY="--seconds 600 --seed 7"
integrity: $(VENV)/.dev
	$(RUN)/python -m tests.integrity $(INTEGRITY)

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml setup.py $(wildcard src/pyxen/cpu/unicorn/native/*.[ch])
	@PYTHON=$(PYTHON) sh scripts/install.sh $(VENV) "."
	@touch $@

$(VENV)/.dev: $(VENV)/.installed
	@PYTHON=$(PYTHON) sh scripts/install.sh $(VENV) ".[dev]"
	@sh scripts/test_tools.sh
	@touch $@

clean:
	rm -rf $(VENV) build demo src/*.egg-info
	find src tests bench -name __pycache__ -prune -exec rm -rf {} +
	find src -name '*.so' -delete
