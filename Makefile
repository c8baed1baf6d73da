# Everything a person or CI runs. The two that matter: `make run` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SIDE_BY_SIDE ?= 2
PYTEST := $(BIN)/pytest -n $(SIDE_BY_SIDE) --dist loadfile --no-loadscope-reorder

.PHONY: run test test-slow coverage faults check bench docs clean

run: $(VENV)/.installed ## install, then the whole pipeline on the digits data
	$(BIN)/bend-ray run jobs/digits.yaml

test: $(VENV)/.installed-dev ## all tests but the slow ones
	$(PYTEST) -m "not slow"

test-slow: $(VENV)/.installed-dev ## those: kills, clusters, the tutorial, the page
	$(PYTEST) -m slow

faults: $(VENV)/.installed-dev ## 44 kills at random moments (a quarter of an hour)
	$(BIN)/pytest tests/faults/test_kills.py --kills 44

coverage: $(VENV)/.installed-dev ## all tests, and which lines of bend_ray/ they ran, in Ray's workers as well (at least 90 %)
	$(PYTEST) --cov=bend_ray --cov-report=term-missing --cov-fail-under=90

check: $(VENV)/.installed-dev ## format, lint, types, floor plan
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python tests/floorplan.py

bench: $(VENV)/.installed-dev ## side-by-side measurements
	$(BIN)/python benchmarks/digits.py
	$(BIN)/python benchmarks/collect.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/generator.py --parts sampling scale  # and `literature`: 45 minutes a seed
	$(BIN)/python benchmarks/modes.py
	$(BIN)/python benchmarks/spread.py
	$(BIN)/python benchmarks/generator_pays.py
	$(BIN)/python benchmarks/ensemble.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/serve.py
	$(BIN)/python benchmarks/serve_fuzz.py runs/digits
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/memory.py

docs: $(VENV)/.installed-dev ## the generated pages (a test compares them)
	$(BIN)/python -m bend_ray.config.reference > docs/config.md

clean: ## all but the runs
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@ $(VENV)/.installed
