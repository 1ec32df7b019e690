# Needs Python 3.10 or newer, make and git; everything else goes into .venv, once. Works with GNU make 3.81 (macOS).
#   make test ARGS="-k image"       pass arguments on to pytest
#   make demo PYTHON=python3.12     choose the Python that .venv is made with
#   make test BACKEND=cuda13        on Linux: MLX on an NVIDIA GPU instead of the CPU
#   make test BACKEND=as-metal      on Linux: as if on a Mac (tests/support/as_metal.py); AS_METAL=m3 or m5 for larger ones

PYTHON  ?= python3
BACKEND ?= cpu
VENV    := .venv
BIN     := $(VENV)/bin

ifeq ($(BACKEND),as-metal)
override BACKEND := cpu
AS_METAL ?= m1
export AS_METAL
export PYTHONPATH := $(CURDIR)/tests/support/site
endif

ifeq ($(shell uname -s),Linux)
USE_EXTRAS := [$(BACKEND)]
DEV_EXTRAS := [$(BACKEND),dev]
else
USE_EXTRAS :=
DEV_EXTRAS := [dev]
endif

INSTALL = PIP_DISABLE_PIP_VERSION_CHECK=1 $(BIN)/python -m pip install --quiet
OFFLINE = HF_HUB_OFFLINE=1

.NOTPARALLEL:
.PHONY: help demo test slow chaos parity check fix clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.use ## ask the bundled tiny checkpoint about a picture; no download
	@$(OFFLINE) $(BIN)/python examples/demo.py

test: $(VENV)/.dev ## run the tests, as many at a time as there are cores; ARGS="-n0" runs one
	@$(OFFLINE) $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal $(ARGS)

slow: $(VENV)/.dev ## run the tests marked slow
	@$(OFFLINE) $(BIN)/python -m pytest -m "slow and not parity" $(ARGS)

chaos: $(VENV)/.dev ## kill what writes at random moments, hundreds of times
	@$(OFFLINE) $(BIN)/python -m pytest -m chaos $(ARGS)

parity: $(VENV)/.dev ## compare with PyTorch; needs the reference extra, see CONTRIBUTING.md
	@$(BIN)/python -c 'import torch, transformers' || { \
	  echo "The parity suite needs torch and transformers: see CONTRIBUTING.md, Parity." >&2; exit 1; }
	@$(OFFLINE) $(BIN)/python -m pytest -m parity $(ARGS)

check: $(VENV)/.dev ## lint, formatting, types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

fix: $(VENV)/.dev ## format, and repair what ruff can repair
	$(BIN)/python -m ruff format
	$(BIN)/python -m ruff check --fix

clean: ## remove .venv, caches and builds
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: .use is enough to run, .dev to work on it. A changed pyproject.toml installs again.
$(VENV)/.use: pyproject.toml
	$(make-venv)
	@$(INSTALL) -e '.$(USE_EXTRAS)'
	@touch $@

$(VENV)/.dev: pyproject.toml
	$(make-venv)
	@$(INSTALL) -e '.$(DEV_EXTRAS)'
	@touch $(VENV)/.use $@

define make-venv
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
  echo "smolvlm-mlx needs Python 3.10 or newer and '$(PYTHON)' is not. Name another: make PYTHON=python3.12 ..." >&2; exit 1; }
@$(PYTHON) -c 'import platform, sys; sys.exit((sys.platform, platform.machine()) == ("darwin", "x86_64"))' || { \
  echo "On macOS MLX needs Apple silicon and an arm64 Python; '$(PYTHON)' is x86_64. Name another: make PYTHON=..." >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' || { \
  echo "'$(PYTHON)' cannot make virtual environments. On Debian and Ubuntu: sudo apt install python3-venv" >&2; exit 1; }
@echo "Installing into $(VENV); the first time takes a minute or two."
@test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV)
endef
