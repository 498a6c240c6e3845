# make demo: see it work. make test: run the tests. Each makes .venv first if it is missing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

# The back end of MLX for this machine: Metal on a Mac, CUDA with a driver that fits, else CPU.
DRIVER := $(shell nvidia-smi --query-gpu=driver_version --format=csv,noheader 2>/dev/null | head -n 1 | cut -d. -f1)
ifeq ($(shell uname),Darwin)
EXTRAS := test
else ifeq ($(shell test "$(DRIVER)" -ge 580 2>/dev/null && echo yes),yes)
EXTRAS := cuda13,test
else ifeq ($(shell test "$(DRIVER)" -ge 551 2>/dev/null && echo yes),yes)
EXTRAS := cuda12,test
else
EXTRAS := cpu,test
endif

# PyTorch, the other side of the parity tests, is large: make test PARITY= goes without it.
PARITY ?= parity
TESTED := $(VENV)/$(or $(PARITY),ready)

# A process for each core and one more, since some tests wait; who has none left takes another's.
CORES := $(shell nproc 2>/dev/null || sysctl -n hw.ncpu)
PYTEST := $(BIN)/python -m pytest --numprocesses $$(($(CORES) + 1)) --maxprocesses 8 --dist worksteal

.PHONY: demo test test-slow lint dist clean

demo: $(VENV)/ready
	$(BIN)/m3mlx demo

test: $(TESTED)
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(TESTED)
	$(PYTEST) -m slow $(ARGS)

lint: $(VENV)/ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Wheel and sdist, their contents checked, and the wheel tried in an empty environment.
dist: $(VENV)/ready
	rm -rf build dist
	$(PYTHON) -m venv build/made
	build/made/bin/python -m pip install --quiet build twine
	build/made/bin/python -m build
	build/made/bin/twine check --strict dist/*
	M3MLX_DIST=dist $(BIN)/python -m pytest -q tests/test_wheel.py
	$(PYTHON) -m venv build/tried
	build/tried/bin/python -m pip install --quiet "$$(ls dist/*.whl)[$(subst test,serve,$(EXTRAS))]"
	cd build && tried/bin/m3mlx --version && tried/bin/m3mlx doctor
	cd build && tried/bin/m3mlx memorize ../README.md --cold --store store
	cd build && tried/bin/m3mlx ask "Which licence has m3mlx?" --max-tokens 30 --store store

$(VENV)/ready: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "m3mlx needs Python 3.11 or newer; name one with: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS)]"
	touch $@

.PHONY: docs
docs: $(VENV)/ready
	$(BIN)/python tools/make_docs.py $(ARGS)

$(VENV)/parity: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --editable ".[$(EXTRAS),parity]"
	touch $@

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
