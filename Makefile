# `make quickstart` and `make test` need Python >= 3.11 and make; everything else they install into .venv.
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
PYTHON ?= python3
UV := $(shell command -v uv 2> /dev/null)

.PHONY: quickstart test test-long test-lowest notebooks docs wheel lint clean

quickstart: $(VENV)/.installed  ## train, test and look at a small detector, from nothing, in minutes
	$(BIN)/python scripts/quickstart.py

test: $(VENV)/.installed  ## the test suite, a process for each core
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

test-long: $(VENV)/.installed  ## the same, and what takes long: all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal -m ''

test-lowest: $(LOWEST)/.installed  ## the test suite with the lowest versions that are supported
	OMP_NUM_THREADS=1 $(LOWEST)/bin/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

notebooks: $(VENV)/.installed  ## the notebooks, from top to bottom
	$(BIN)/jupyter execute notebooks/*.ipynb

docs: $(VENV)/.installed  ## the site of the documentation, in site/
	$(BIN)/mkdocs build --quiet --strict

wheel: $(VENV)/.installed  ## the wheel: built, installed elsewhere, tried there
	$(BIN)/python scripts/try_wheel.py

lint: $(VENV)/.installed  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(VENV)/.installed: pyproject.toml
ifneq ($(UV),)
	$(UV) venv --quiet --allow-existing --python $(PYTHON) $(VENV)
	$(UV) pip install --python $(BIN)/python --editable '.[dev]'
else
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("Python >= 3.11 is needed: make PYTHON=python3.12")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --editable '.[dev]'
endif
	touch $@

$(LOWEST)/.installed: pyproject.toml
	$(PYTHON) -m venv $(LOWEST)-uv
	$(LOWEST)-uv/bin/python -m pip install --quiet uv
	$(LOWEST)-uv/bin/uv venv --quiet --allow-existing --python $(PYTHON) $(LOWEST)
	$(LOWEST)-uv/bin/uv pip install --python $(LOWEST)/bin/python --resolution lowest-direct --editable '.[dev]'
	touch $@

clean:  ## remove what the commands above made: environments, site, the drawn data and its runs
	rm -rf $(VENV) $(LOWEST) $(LOWEST)-uv site runs/quickstart runs/notebooks datasets/shapes datasets/notebooks
