# Two commands do all their own set-up: `make run` and `make test`.
# Both take VENV and CONSTRAINTS, so that a second set of versions can live beside the first.

PYTHON ?= python3
VENV := .venv
CONSTRAINTS := constraints.txt
DATA_ROOT := data
ENV :=
PARAMS :=
WORKERS := auto
PYTEST_ARGS :=

BIN := $(VENV)/bin
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export PIP_DISABLE_PIP_VERSION_CHECK := 1

ifneq (,$(findstring data_root=,$(PARAMS)))
$(error give the data folder as DATA_ROOT=..., not in PARAMS: the report is looked for there)
endif

# PARAMS, with DATA_ROOT in front where it is not the default; by way of the environment, so that
# no character in it is the shell's
comma := ,
root_param := $(if $(filter-out data,$(DATA_ROOT)),data_root=$(DATA_ROOT))
export RUN_PARAMS := $(root_param)$(if $(and $(root_param),$(PARAMS)),$(comma))$(PARAMS)
env_option := $(if $(ENV),--env=$(ENV))

.DEFAULT_GOAL := help
.PHONY: help run test quick lint viz jupyter picture lock lock-transformers5 clean

help: ## this list
	@sed -nE 's/^([a-z0-9-]+):[^#]*## (.*)/\1\t\2/p' Makefile | expand -t 20

run: $(VENV)/installed-core ## install, run nocturnal_point (ENV=, PARAMS=, DATA_ROOT=), print the report's path
	@$(BIN)/kedro run --pipelines=nocturnal_point $(env_option) $(if $(RUN_PARAMS),--params="$$RUN_PARAMS")

# Of small tensors, more threads only wait for each other, beside the processes that tests start.
test quick: export OMP_NUM_THREADS := 1

# A file is one process's from its first test to its last: what its tests share is made once.
pytest = @$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test: lint ## install, lint, type-check and run every test (WORKERS=, PYTEST_ARGS=)
	$(pytest) $(PYTEST_ARGS)

quick: lint ## the same without the slow tests
	$(pytest) -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/installed-dev ## ruff, mypy and the import contracts
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet .
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo

viz: $(VENV)/installed-core ## look at the lineage (ENV=)
	@$(BIN)/kedro viz run $(env_option)

jupyter: $(VENV)/installed-notebook ## notebooks with catalog and pipelines at hand (ENV=)
	@$(BIN)/kedro jupyter lab $(env_option)

picture: ## docs/images/report.png from the newest report below DATA_ROOT (needs chromium)
	@chromium --headless --no-sandbox --disable-gpu --hide-scrollbars --window-size=1120,1400 \
	  --user-data-dir="$$(mktemp -d)" --virtual-time-budget=10000 \
	  --screenshot=docs/images/report.png "file://$$(realpath "$$(ls -t \
	  "$(DATA_ROOT)"/08_reporting/*/report.html/*/report.html | sed -n 1p)")" 2>/dev/null

lock: ## write constraints.txt anew: the newest versions that go with torch 2.13
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet torch==2.13.0 granite-tsfm==0.3.2 -e '.[dev,notebook]'
	{ grep '^#' constraints.txt; \
	  .venv-lock/bin/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//'; } > .venv-lock/pins
	mv .venv-lock/pins constraints.txt
	rm -rf .venv-lock

lock-transformers5: ## write constraints-transformers5.txt anew: the newest that go with torch 2.11
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet uv
	printf '%s\n' torch==2.11.0 granite-tsfm==0.3.11 'transformers>=5' > .venv-lock/set
	{ grep '^#' constraints-transformers5.txt; \
	  .venv-lock/bin/uv pip compile --quiet --no-annotate --no-header --python-version 3.11 \
	    --extra dev --extra notebook --constraints .venv-lock/set pyproject.toml \
	  | grep -vE '^(cuda-|nvidia-|setuptools|triton)'; } > .venv-lock/pins
	mv .venv-lock/pins constraints-transformers5.txt
	rm -rf .venv-lock

clean: ## remove the environment and every cache, keep data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .viz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What each stamp installs. Every set holds the core; the stamps are renewed when the versions or
# the interpreter change, and otherwise nothing is installed again.
core := .
dev := .[dev]
notebook := .[notebook]

$(VENV)/installed-%: pyproject.toml $(CONSTRAINTS) $(BIN)/python
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/pip install --quiet -c $(CONSTRAINTS) -e '$($*)'
	@touch $(VENV)/installed-core $@

$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 13) or sys.exit( \
	  "nocturnal_kedro needs Python 3.11 or 3.12, and $(PYTHON) is %d.%d: add PYTHON=python3.12" % v)'
	@$(PYTHON) -m venv $(VENV)
