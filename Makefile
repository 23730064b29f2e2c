# Everything sets itself up: the environment lies in .venv and is made again when pyproject.toml changes.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: install axe demo test soak faults check bench clean

install: $(VENV)/.installed

# One pip call with torch pinned: 2.13.0 is a CPU build, and nothing else in the call can pull in another one. timm, an
# oracle of the tests, asks for torchvision, which has no build beside it: it comes alone.
$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV) (once; a few minutes)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "torch==2.13.0" --editable ".[dev]"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "timm==1.0.31"
	@touch $@

demo: install
	@$(BIN)/vitrail demo
	@echo "first, once per terminal: source $(BIN)/activate"

# The accessibility scan of the pages; a test that needs it is skipped aloud where npm is not there.
axe: $(VENV)/axe/node_modules/axe-core/axe.min.js

$(VENV)/axe/node_modules/axe-core/axe.min.js:
	@npm install --prefix $(VENV)/axe --no-audit --no-fund --silent axe-core@4.14.1

# Two processes, a file of tests each; one thread each, which tests/conftest.py sees to.
test: install
	@$(BIN)/python -m pytest -n 2 --dist loadfile

# The long checks: kills at random instants, worker counts, whole recipes. docs/measurements.md has their figures.
soak: install
	@$(BIN)/python -m pytest -m slow --override-ini addopts="-q -ra --strict-markers"

# Writes docs/reliability.md; an hour. Its rows of peers need: pip install accelerate lightning-fabric
faults: install
	@$(BIN)/python benchmarks/faults/all.py

check: install
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

bench: install
	@$(BIN)/python benchmarks/startup.py
	@$(BIN)/python benchmarks/recipes.py fashion-mini --recipe demo --seeds 0

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache
