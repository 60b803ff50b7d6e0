# `make help` lists what there is.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
SOURCES := bench dags plugins demo tests

export AIRFLOW__CORE__LOAD_EXAMPLES := False

.PHONY: help venv demo up bench test test-fast lint lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/installed ## Create .venv with everything that requirements.lock pins

.venv/installed: requirements.lock
	test -x $(UV) || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip sync --quiet --system-certs --python $(BIN)/python requirements.lock \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

demo: venv ## Watch a whole migration on this machine (ROWS=1000000)
	$(BIN)/python -m demo run $(if $(ROWS),--rows $(ROWS))

up: venv ## Airflow's UI on a seeded system, on this machine, until Ctrl-C
	exec $(BIN)/python -m demo up

bench: venv ## Measure the copy against PostHog's statement and a plain one (SIZE=60M for one size)
	$(BIN)/python -m bench $(if $(SIZE),--size $(SIZE))

test: venv ## Run every test
	$(BIN)/python -m pytest

test-fast: venv ## Run the tests that take no more than a few seconds each
	$(BIN)/python -m pytest -m "not slow"

lint: venv ## Check style and types
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy plugins/pdi2 demo

lock: venv ## Pin anew what setup.cfg asks for
	$(UV) pip compile --quiet setup.cfg --extra test --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" --output-file requirements.lock

clean: ## Remove what the other targets made
	rm -rf .venv .demo .demo-up .pytest_cache .mypy_cache .ruff_cache
