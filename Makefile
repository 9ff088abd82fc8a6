# The habits of this project. Every target installs what it needs: a bare Python 3.11 or 3.12 is enough.
#
#   make demo    align a small T5 with DRO on bundled data: SFT, DRO-V, evaluation, a table and plots
#   make test    the fast tests
#   make test-faults   several processes, kill -9, SIGTERM: a quarter of an hour
#   make docs    the site: guides and a reference of the code, links and anchors checked
#   make check   what CI runs: format, lint, types, and the fast tests (floors, links and examples of the docs among them) with coverage
#   PYTHON=/path/to/python3.12 make test      choose the interpreter

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DEMO_DIR ?= runs/demo
WORKERS ?= 2
PYTEST_ARGS ?=

# The first interpreter that runs and is new enough. An explicit PYTHON is used as given.
VERSION_TEST := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON ?= $(shell for python in python3.12 python3.11 python3 python; do \
	"$$python" -c '$(VERSION_TEST)' >/dev/null 2>&1 && { echo "$$python"; break; }; done)

.PHONY: help install demo test test-slow test-faults check format docs bench clean

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -8

$(STAMP): pyproject.toml constraints.txt
	@if [ -z "$(PYTHON)" ] || ! "$(PYTHON)" -c '$(VERSION_TEST)' 2>/dev/null; then \
	  echo "jaxalign needs Python 3.11 or 3.12, and found $$('$(if $(PYTHON),$(PYTHON),python3)' --version 2>&1 || true)." >&2; \
	  echo "Install one and say where it is: PYTHON=/path/to/python3.12 make $(or $(MAKECMDGOALS),test)" >&2; \
	  exit 1; fi
	@if ! "$(BIN)/python" -m pip --version >/dev/null 2>&1; then \
	  echo "Creating $(VENV) with $$('$(PYTHON)' --version)"; \
	  "$(PYTHON)" -m venv --clear "$(VENV)" || { rm -rf "$(VENV)"; \
	    echo "python -m venv failed; on Debian or Ubuntu install the package python3-venv." >&2; exit 1; }; fi
	@echo "Installing jaxalign and its dependencies into $(VENV) (a few minutes, once)"
	@"$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch "$@"

install: $(STAMP)

demo: $(STAMP)
	@"$(BIN)/jaxalign" demo --output_dir="$(DEMO_DIR)"

test: $(STAMP)
	@"$(BIN)/python" -m pytest -q -n $(WORKERS) --dist loadfile $(PYTEST_ARGS)

test-slow: $(STAMP)
	@"$(BIN)/python" -m pytest -q -m slow $(PYTEST_ARGS)

test-faults: $(STAMP)
	@"$(BIN)/python" -m pytest -q -m faults tests/distributed $(PYTEST_ARGS)

# pytest comes last: CI reads its summary from the last line. Coverage is counted on Python 3.12 and later, by sys.monitoring (sysmon): the
# tracer of 3.11 made tests of losses and statistics use 43 % more processor time.
check: $(STAMP)
	"$(BIN)/ruff" format --check .
	"$(BIN)/ruff" check .
	"$(BIN)/mypy"
	@coverage=$$("$(BIN)/python" -c 'import sys; print("--cov --cov-report=term" if sys.version_info >= (3, 12) else "")'); \
	[[ -n $$coverage ]] || echo "coverage is counted on Python 3.12 and later"; \
	COVERAGE_CORE=sysmon "$(BIN)/python" -m pytest -q -n $(WORKERS) --dist loadfile $$coverage $(PYTEST_ARGS)

format: $(STAMP)
	"$(BIN)/ruff" format .
	"$(BIN)/ruff" check --fix .

docs: $(STAMP)
	"$(BIN)/python" scripts/check_docs.py
	@"$(BIN)/python" -c 'import mkdocs, mkdocstrings' 2>/dev/null || \
	  "$(BIN)/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 "$(BIN)/mkdocs" build --strict --quiet
	@echo "the site: build/site/index.html"

bench: $(STAMP)
	for script in benchmarks/train_step.py benchmarks/decode.py benchmarks/input_pipeline.py; do \
	  echo "== $$script"; "$(BIN)/python" "$$script"; done

clean:
	rm -rf "$(VENV)" build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
