# Two commands do all their own set-up: `make run` and `make test`.

PYTHON ?= python3
DATA_ROOT ?= data
ENV ?=
PARAMS ?=
PYTEST_ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true

# --params from PARAMS, with DATA_ROOT in front where it is not the default
comma := ,
ROOT_PARAM := $(if $(filter-out data,$(DATA_ROOT)),data_root=$(DATA_ROOT))
ALL_PARAMS := $(ROOT_PARAM)$(if $(and $(ROOT_PARAM),$(PARAMS)),$(comma))$(PARAMS)
RUN_OPTIONS := $(if $(ENV),--env=$(ENV)) $(if $(ALL_PARAMS),--params="$(ALL_PARAMS)")

.DEFAULT_GOAL := help
.PHONY: help run test quick lint viz jupyter lock clean

help: ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

run: $(VENV)/installed ## install, run nocturnal_point (PARAMS=..., ENV=...), print the report's path
	@$(BIN)/kedro run --pipelines=nocturnal_point $(RUN_OPTIONS)
	@ls -t $(DATA_ROOT)/08_reporting/nocturnal_point/report.html/*/report.html | head -n 1

test: lint ## install, lint, type-check and run every test (PYTEST_ARGS=...)
	@$(BIN)/python -m pytest $(PYTEST_ARGS)

quick: lint ## the same without the slow tests
	@$(BIN)/python -m pytest -m "not slow" $(PYTEST_ARGS)

lint: $(VENV)/installed-dev ## ruff, mypy and the import contracts
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

viz: $(VENV)/installed ## look at the lineage
	@$(BIN)/kedro viz run

jupyter: $(VENV)/installed ## notebooks with catalog and pipelines at hand
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[notebook]'
	@$(BIN)/kedro jupyter lab

lock: ## write constraints.txt anew from a clean installation of the newest allowed versions
	rm -rf .venv-lock
	$(PYTHON) -m venv .venv-lock
	.venv-lock/bin/pip install --quiet 'torch==2.13.0' 'transformers<5' -e '.[dev,notebook]'
	.venv-lock/bin/pip freeze --exclude-editable | sed -E 's/\+[a-z0-9.]+$$//' > constraints.txt
	rm -rf .venv-lock

clean: ## remove the environment and every cache, keep data
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .viz
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/installed-dev: pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..."
	@$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@ $(VENV)/installed
