# The two commands: `make demo` and `make test`. Everything lands in .venv and runs/.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: help demo test lint type bench docs clean

help:
	@echo "make demo   install, then train, prune, quantise, inject and report on digits"
	@echo "make test   install the development set, then lint, type and every test"
	@echo "make lint   ruff and the import direction"
	@echo "make type   mypy --strict"
	@echo "make bench  the benchmarks under benchmarks/"
	@echo "make docs   check the links of the pages under docs/ and run their examples"
	@echo "make clean  remove .venv and the caches"

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[report]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) -e '.[dev]'
	@touch $@ $(VENV)/.demo

demo: $(VENV)/.demo
	$(BIN)/rasp demo --out runs/demo

test: lint type
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

type: $(VENV)/.dev
	$(BIN)/mypy

bench: $(VENV)/.dev
	$(BIN)/python -m pytest benchmarks -s

docs: $(VENV)/.dev
	$(BIN)/python -m pytest tests/unit/test_docs_pages.py

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .hypothesis .import_linter_cache
