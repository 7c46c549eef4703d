# The two set-up commands are `make demo` and `make test`; `make check` is the quick part, and
# `make full` adds many generated inputs.
# Use another Python with `make demo PYTHON=python3.12`; it needs 3.11 or newer.
PYTHON ?= python3
BIN := .venv/bin
# a process for each core, so one thread is enough in each
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto
SHAPES := --jaxtyping-packages=associative_transformer,beartype.beartype

.PHONY: demo test full check lint tables

demo: .venv/installed
	$(BIN)/ait train triangle-ait-tiny --runs runs/demo --overwrite

test: check
	$(PYTEST) -m "slow and not gpu and not fuzz"

full: test
	$(PYTEST) -m "fuzz and not gpu" $(SHAPES)

# torch.compile can't trace functions whose shapes are checked, hence two calls.
check: lint
	$(PYTEST) -m "not slow and not gpu and not compiled and not fuzz" $(SHAPES)
	$(PYTEST) -m "compiled and not slow and not gpu"

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# The tables in the docs, the README and recipes/table.json, after a change of models or recipes.
tables: .venv/installed
	$(BIN)/python docs/tables.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo "installing into .venv; PyTorch takes a few minutes"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch .venv/installed $@
