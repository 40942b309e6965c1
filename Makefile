# Every target does its own set-up: it needs make and Python 3.11, 3.12 or 3.13, and nothing else.
#   make advise     which batch size for the handwritten digits? (the main job, on real data)
#   make test       lint, types, and all tests but the slow ones
# Another Python:   make test PYTHON=python3.13 VENV=.venv313

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
WORKERS ?= 2
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt

# TensorFlow's start-up notes would bury the recommendation.
advise: export TF_CPP_MIN_LOG_LEVEL ?= 3

.DEFAULT_GOAL := help
.PHONY: help advise test test-slow test-versions lint format bench bench-quick docs clean

help:  ## Show this list.
	@awk -F':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' Makefile

advise: $(VENV)/.ready-run  ## Measure the noise scale on real digits and print a recommendation.
	$(BIN)/gns-keras advise digits

test: lint  ## Lint, types, and all tests but the slow ones.
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

test-slow: $(VENV)/.ready-test  ## The slow tests: coverage of intervals, many seeds.
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal -m slow

test-versions: $(VENV)/.created  ## Quick tests on every supported Python and Keras found here.
	$(BIN)/python tests/versions.py

lint: $(VENV)/.ready-test  ## Style, formatting, types of gns_keras.core.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.ready-test  ## Let ruff mend what it can.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.ready-test  ## Every table of docs/performance.md; wants an idle machine.
	$(BIN)/python benchmarks/bench.py

bench-quick: $(VENV)/.ready-test  ## The same with fewer rows and repeats: about six minutes.
	$(BIN)/python benchmarks/bench.py --quick

docs: $(VENV)/.ready-docs  ## Build the documentation into site/.
	$(BIN)/mkdocs build --strict

clean:  ## Remove the environment and everything built.
	rm -rf $(VENV) .versions build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was made from: a second run installs nothing. The environment has
# a stamp too, so that one whose creation was interrupted is made again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) \
	else f"gns_keras needs Python 3.11, 3.12 or 3.13. Received: {v[0]}.{v[1]} ($(PYTHON)). " \
	"Choose another with `make PYTHON=...`.")'
	$(PYTHON) -m venv --clear $(VENV)
	touch $@

$(VENV)/.ready-run: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[demo,plot]'
	touch $@

$(VENV)/.ready-test: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[test]'
	touch $@ $(VENV)/.ready-run

$(VENV)/.ready-docs: $(VENV)/.created pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[docs]'
	touch $@
