# `make quickstart` and `make test` are all a fresh clone needs.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Three for two cores, since tests wait for Slurm and for servers. One file or folder of tests is quicker without.
WORKERS ?= -n 3 --dist loadfile --no-loadscope-reorder
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: quickstart test check format clean help

help:
	@echo "make quickstart  install into .venv, then prepare, pre-train, export and probe the sample world"
	@echo "make test        run the tests (ARGS='tests/model -k hf' for some, ARGS='-m \"not slow\"' for most)"
	@echo "make check       lint, format check, types"
	@echo "make format      format the code"
	@echo "make clean       remove what quickstart wrote (the environment stays)"

# The stamp is newer than what it was made from, so a second run installs nothing.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "trelm-ds needs Python 3.11 or newer; say which: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	@echo "installing into $(VENV): some minutes, and without a word unless something fails"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@echo "building DeepSpeed's CPU communication op (once, about a minute)"
	$(BIN)/python -c 'from trelm_ds.distributed import build_cpu_op; build_cpu_op()' >/dev/null
	@touch $@

quickstart: $(VENV)/.installed
	@PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/quickstart.sh

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(if $(findstring tests,$(ARGS)),,$(WORKERS)) $(ARGS)

check: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf quickstart
