# People and CI use the same targets; each sets up .venv first where that is needed.
SHELL := bash
.DEFAULT_GOAL := help

PYTHON ?= python3
# More arguments for the command behind a target: make test ARGS="-k gate -x"
ARGS ?=

BIN := .venv/bin
READY := .venv/.installed

# The Python that .venv was made of may be gone since.
ifneq ($(shell test -x $(BIN)/python && echo there),there)
.PHONY: $(READY)
endif

.PHONY: help
help:  ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): requirements-build.lock requirements.lock requirements-demo.txt pyproject.toml
	@PYTHON='$(PYTHON)' scripts/set_up.sh

.PHONY: setup
setup: $(READY)  ## make or mend .venv; the others do it by themselves

.PHONY: demo
demo: $(READY)  ## watch the service learn from real MovieLens events, on a Kafka of its own
	@$(BIN)/headwater demo $(ARGS)

.PHONY: test
test: $(READY)  ## unit tests; some minutes
	@$(BIN)/python -m pytest $(ARGS)

.PHONY: coverage
coverage: $(READY)  ## unit tests, and which lines they reach; half as long again
	@$(BIN)/python -m pytest --cov $(ARGS)

.PHONY: integration
integration: $(READY)  ## tests against a real Apache Kafka, started for them
	@$(BIN)/python -m pytest tests/integration $(ARGS)

# Of all targets together.
SECONDS := 60

.PHONY: fuzz
fuzz: $(READY)  ## try odd records on the codec, guided by coverage; SECONDS=600; writes reports/fuzz.json
	@$(BIN)/python -m tests.fuzz --seconds $(SECONDS) $(ARGS)

# Strikes of each fault, and the names of those to run, with commas in between; all without.
SEEDS ?= 1
ONLY ?=

.PHONY: faults
faults: $(READY)  ## kill, freeze, cut off and starve the service, then count what was lost; SEEDS=20 ONLY=name,name
	@$(BIN)/python -m tests.faults --seeds $(SEEDS) --only '$(ONLY)' $(ARGS)

.PHONY: check
check: $(READY)  ## format, lint, types, imports, dependencies, spelling, scripts, deployment files
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry .
	$(BIN)/codespell
	git ls-files --cached --others --exclude-standard '*.sh' .ci/run | xargs $(BIN)/shellcheck
	$(BIN)/python scripts/check_text.py
	$(BIN)/python scripts/check_lock.py
	scripts/check_deploy.sh

.PHONY: bench
bench: $(READY)  ## measure throughput and latency against the bare Kafka client; writes reports/bench.json
	@$(BIN)/python -m benchmarks $(ARGS)

# Where the files of the continual benchmark lie: period_*.tsv.gz with session_id and item_id.
DATA ?= ../shared/data/diginetica

.PHONY: diginetica
diginetica: $(READY)  ## measure continual learning (ADER's protocol); DATA=FOLDER; writes reports/diginetica.json
	@ls $(DATA)/period_*.tsv.gz >/dev/null 2>&1 || \
		{ echo 'diginetica: no period_*.tsv.gz in $(DATA); DATA=FOLDER names another folder' >&2; exit 2; }
	@$(BIN)/headwater backtest --protocol continual --periods $(DATA)/period_*.tsv.gz --user session_id \
		--streamed --out reports/diginetica.json $(ARGS)

.PHONY: movielens
movielens: $(READY)  ## measure learning from a stream, each event tested first; writes reports/movielens.json
	@$(BIN)/headwater backtest --movielens --from 0.5 --retrain-every 10000 --out reports/movielens.json $(ARGS)

.PHONY: schemas
schemas: $(READY)  ## write docs/schemas and docs/settings.md after a change of models or settings
	$(BIN)/python -m scripts.make_schemas
	$(BIN)/python -m scripts.make_settings_reference

# What --no-emit-index-url and --no-header leave out: hosts and paths of whoever locked.
COMPILE := $(BIN)/uv pip compile --universal --python-version 3.11 --generate-hashes \
	--no-emit-index-url --no-header --quiet $(if $(UPGRADE),--upgrade)

.PHONY: lock
lock: $(READY)  ## write the locks after a change of dependencies; UPGRADE=1 takes the newest versions
	$(COMPILE) pyproject.toml --all-extras --group dev -o requirements.lock
	$(COMPILE) pyproject.toml -c requirements.lock -o requirements-serve.lock
	$(COMPILE) --group build -c requirements.lock -o requirements-build.lock

.PHONY: clean
clean:  ## remove caches, reports and built files; .venv and headwater-data stay
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache .coverage .coverage.* dist reports
	find service tests benchmarks scripts -name __pycache__ -prune -exec rm -rf {} +
