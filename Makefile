# `make demo` installs the package and trains a model; `make test` runs the checks and tests. `make check`
# skips the slow and the compiled tests, and `make full` adds tests that take long. docs/how-to/releasing.md
# describes `make lowest` and `make package`.
# To use another Python (3.11 or newer), run `make demo PYTHON=python3.12`.
PYTHON ?= python3
BIN := .venv/bin
# one test process per core, each with one thread
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n auto
SHAPES := --jaxtyping-packages=associative_transformer,beartype.beartype
LATER := (gpu or fuzz or thorough or interop or docs)
QUICK := -m "not slow and not compiled and not $(LATER)" $(SHAPES)

.PHONY: demo test full docs check lint tables lowest package

demo: .venv/installed
	$(BIN)/ait train triangle-ait-tiny --runs runs/demo --overwrite

# Two calls, because torch.compile cannot trace functions with shape checks.
test: check
	$(PYTEST) -m "(slow or compiled) and not $(LATER)"

full: test docs .venv/installed-interop
	$(PYTEST) -m "(fuzz or thorough or interop or docs) and not gpu and not compiled" $(SHAPES)
	$(PYTEST) -m "(fuzz or thorough or interop) and not gpu and compiled"

# the documentation site, in docs/_build/html
docs: .venv/installed-docs
	$(BIN)/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going docs docs/_build/html

check: lint
	$(PYTEST) $(QUICK)

lint: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# Run this after changing models or recipes: it writes the tables in the docs and
# recipes/table.json.
tables: .venv/installed
	$(BIN)/python docs/tables.py

# The quick tests with the lowest versions that pyproject.toml allows, in an environment of their own.
lowest: BIN := build/lowest/bin
lowest:
	rm -rf build/lowest
	$(PYTHON) -m venv build/lowest
	$(BIN)/python -m pip install --quiet uv==0.13.9
	$(BIN)/uv pip compile --quiet --resolution lowest-direct --extra dev pyproject.toml \
		--python $(BIN)/python --output-file build/lowest/requirements.txt
	$(BIN)/python -m pip install --quiet --requirement build/lowest/requirements.txt
	$(BIN)/python -m pip install --quiet --no-deps --editable .
	$(PYTEST) $(QUICK)

# What is uploaded for a release, in dist/; then the wheel in an empty environment outside the checkout.
package: .venv/installed-release
	rm -rf dist build/package
	$(BIN)/python -m build --quiet
	$(BIN)/python -m twine check --strict dist/*
	$(PYTHON) -m venv build/package/environment
	build/package/environment/bin/python -m pip install --quiet dist/*.whl
	mkdir build/package/empty
	cd build/package/empty && ../environment/bin/python -P ../../../tests/drivers/installed_package.py

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	@echo "installing into .venv; PyTorch takes a few minutes"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

.venv/installed-dev: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch .venv/installed $@

.venv/installed-docs: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[dev,docs]"
	touch $@

.venv/installed-release: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[dev,release]"
	touch $@

.venv/installed-interop: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[dev,interop]"
	touch $@
