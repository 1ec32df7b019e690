# Needs Python 3.11 to 3.15, make and git; everything else goes into .venv, once. Works with GNU make 3.81 (macOS).
#   make test ARGS="-k image"       pass arguments on to pytest
#   make demo PYTHON=python3.12     choose the Python that .venv is made with
#   make test BACKEND=cuda13        on Linux: MLX on an NVIDIA GPU instead of the CPU
#   make test BACKEND=as-metal      on Linux: as if on a Mac (tests/support/as_metal.py); AS_METAL=m3 or m5 for larger ones

PYTHON  ?=
BACKEND ?= cpu
VENV    := .venv
BIN     := $(VENV)/bin
SYSTEM  := $(shell uname -s)

ifeq ($(BACKEND),as-metal)
override BACKEND := cpu
AS_METAL ?= m1
export AS_METAL
export PYTHONPATH := $(CURDIR)/tests/support/site
endif

ifeq ($(SYSTEM),Linux)
USE_EXTRAS := [$(BACKEND)]
DEV_EXTRAS := [$(BACKEND),dev]
else
USE_EXTRAS :=
DEV_EXTRAS := [dev]
endif

INSTALL = PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USE_PEP517=1 $(BIN)/python -m pip install --quiet
INSTALLING = Installing into $(VENV); the first time takes a minute or two.
OFFLINE = HF_HUB_OFFLINE=1

# Without PYTHON, the first of these that fits, then one of uv's. 3.15 is the newest that every dependency has wheels for.
PYTHONS := python3 python3.15 python3.14 python3.13 python3.12 python3.11
FITS := import platform, sys; version = sys.version_info[:2]; print( \
  "is Python %d.%d" % version if not (3, 11) <= version <= (3, 15) else \
  "is built for Intel, and MLX needs Apple silicon" if (sys.platform, platform.machine()) == ("darwin", "x86_64") else \
  "cannot make virtual environments (Debian and Ubuntu: sudo apt install python3-venv)" \
  if sys.prefix == sys.base_prefix and not __import__("importlib.util").util.find_spec("ensurepip") else "fits")
# An environment is made again when its Python is gone, does not fit any longer, or is another than the one asked for; when the
# folder was moved, whose name is all over it; and for another backend.
MADE-FOR = printf '%s in %s\n' '$(BACKEND)' "$$(pwd -P)"
AGAIN := $(shell test "`$(BIN)/python -c 'import pip; $(FITS)' 2>/dev/null`" = fits \
  && { test ! -e $(VENV)/.use || test "`cat $(VENV)/.use`" = "$$($(MADE-FOR))"; } $(if $(PYTHON), \
  && test "`$(BIN)/python -V`" = "`"$(PYTHON)" -V 2>&1`") || echo again)

.NOTPARALLEL:
.PHONY: help demo test slow chaos mutants parity check fix house clean again

help: ## show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

demo: $(VENV)/.use ## ask the bundled tiny checkpoint about a picture; no download
	@$(OFFLINE) $(BIN)/python examples/demo.py

test: $(VENV)/.dev ## run the tests, as many at a time as there are cores; ARGS="-n0" runs one
	@$(OFFLINE) $(BIN)/python -m pytest -n auto --maxprocesses=4 --dist worksteal $(ARGS)

slow: $(VENV)/.dev ## run the tests marked slow
	@$(OFFLINE) $(BIN)/python -m pytest -m "slow and not parity" $(ARGS)

chaos: $(VENV)/.dev ## break what the program stands on, at random moments, and print a table of what was lost
	@$(OFFLINE) $(BIN)/python -m pytest -m chaos $(ARGS)

mutants: $(VENV)/.dev ## change what was changed since main in small ways, and see whether a test fails
	@$(OFFLINE) $(BIN)/python -m tests.mutants $(ARGS)

parity: $(VENV)/.dev ## compare with PyTorch; needs the reference extra, see CONTRIBUTING.md
	@$(BIN)/python -c 'import torch, transformers' || { \
	  echo "The parity suite needs torch and transformers: see CONTRIBUTING.md, Parity." >&2; exit 1; }
	@$(OFFLINE) $(BIN)/python -m pytest -m parity -n auto --maxprocesses=2 --dist worksteal $(ARGS)

check: $(VENV)/.dev ## lint, formatting, types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

fix: $(VENV)/.dev ## format, and repair what ruff can repair
	$(BIN)/python -m ruff format
	$(BIN)/python -m ruff check --fix

house: $(VENV)/.dev ## print which module imports which
	@$(BIN)/python -m tests.test_house

clean: ## remove .venv, caches and builds
	rm -rf $(VENV) .venv-lowest .venv-peer build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps: .use is enough to run, .dev to work on it. A changed pyproject.toml installs again.
$(VENV)/.use: pyproject.toml $(AGAIN)
	@echo "$(INSTALLING)"
	@$(INSTALL) -e '.$(USE_EXTRAS)'
	@$(MADE-FOR) >$@

$(VENV)/.dev: pyproject.toml $(AGAIN)
	@echo "$(INSTALLING)"
	@$(INSTALL) -e '.$(DEV_EXTRAS)'
	@$(MADE-FOR) >$(VENV)/.use
	@touch $@

again:
	@$(if $(filter Darwin,$(SYSTEM)),$(check-mac))
	@$(new-venv)

# A shell that runs under Rosetta says x86_64, and an old program is told an old version of macOS, unless asked this way.
define check-mac
test "`sysctl -n hw.optional.arm64 2>/dev/null`" = 1 || { \
  echo "On a Mac, MLX needs Apple silicon; this one has an Intel processor." >&2; exit 1; }; \
version=`SYSTEM_VERSION_COMPAT=0 sw_vers -productVersion`; \
test "$${version%%.*}" -ge 14 || { echo "On a Mac, MLX needs macOS 14 or newer; this is $$version." >&2; exit 1; }
endef

define new-venv
found=; why=; \
for python in $(if $(PYTHON),"$(PYTHON)",$(PYTHONS)); do \
  answer=`"$$python" -c '$(FITS)' 2>/dev/null`; \
  case "$$answer" in \
    fits) found=$$python; break;; \
    ?*) why="$$why$${why:+; }$$python $$answer";; \
  esac; \
done; \
if test -z "$$found$(PYTHON)" && command -v uv >/dev/null; then found=uv; fi; \
test -n "$$found" || { \
  echo "smolvlm-mlx needs Python 3.11 to 3.15: $${why:-$(or $(PYTHON),python3) does not run}. Name one: make PYTHON=python3.12 ..." >&2; \
  exit 1; }; \
test ! -e $(VENV)/pyvenv.cfg || { echo "$(VENV) has another Python, place or backend than it should: making it again."; rm -rf $(VENV); }; \
if test "$$found" = uv; then uv venv --quiet --seed --python '>=3.11,<3.16' $(VENV); else "$$found" -m venv $(VENV); fi && \
echo "$(VENV) is made by $$found: `$(BIN)/python -V`."
endef
