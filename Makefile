# Every target makes its own virtual environment once; VENV=path uses another one, PYTHON=... another interpreter.
VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { echo $$p; break; }; done)

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.simtrain-installed
OUT := reports/out

.PHONY: help demo test lint types layers docs slow bench wheel clean
.DELETE_ON_ERROR:

help: ## list the targets
	@sed -n 's/^\([a-z]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 10

$(INSTALLED): pyproject.toml
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv found; name one with PYTHON=..." >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@

demo: $(INSTALLED) ## MegaScale against its baseline: table, plot, the paper's values beside
	@mkdir -p $(OUT)
	$(BIN)/simtrain compare dense/megascale --plot $(OUT)/megascale.svg

test: $(INSTALLED) ## all tests but the slow ones
	$(BIN)/python -m pytest -n auto

slow: $(INSTALLED) ## the slow tests
	$(BIN)/python -m pytest -n auto -m slow

docs: $(INSTALLED) ## run every block of README.md and docs/guides/
	$(BIN)/python -m pytest tests/docs

bench: $(INSTALLED) ## speed of the simulator itself
	$(BIN)/python -m pytest tests/bench --benchmark-only

lint: $(INSTALLED) ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check --quiet .

types: $(INSTALLED) ## pyright, strict
	$(BIN)/pyright --pythonpath $(BIN)/python

layers: $(INSTALLED) ## import-linter: arrows point down
	$(BIN)/lint-imports

wheel: $(INSTALLED) ## dist/*.whl
	$(BIN)/python -m build --wheel

clean: ## remove what was built, and the default environment
	rm -rf .venv build dist $(OUT) .pytest_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
