# Everything below needs python3 (3.11+) and make; PostgreSQL, RabbitMQ and MariaDB are found, or installed where we are root.

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
LOWEST := .venv-lowest
BENCH  := .venv-bench
AUDIT  := .venv-audit
LOCAL  := $(BIN)/python compose/local.py
# Two at a time, each on services of its own; ARGS="-n 0" for one, with -s or a debugger say.
WORKERS := -n auto --dist worksteal

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Where it is set, each of the hundreds of processes that the tests start compiles relmsg anew: half a second of its two.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo test fuzz audit lowest plain newest bench bench-scale check lint types layers services clean

help: ## say what there is
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(STAMP) ## run the example on services of its own
	@$(LOCAL) run -- $(BIN)/python -m examples.flights.demo $(ARGS)

test: $(STAMP) ## run every test on services of its own; ARGS="-k outbox -x" is passed to pytest
	@$(LOCAL) --in-memory run -- $(BIN)/python -m pytest $(WORKERS) $(ARGS)

fuzz: $(STAMP) ## hostile messages, twenty times as many as in test, from a new seed: 20 minutes; FUZZ_SEED=N repeats a run
	@seed=$${FUZZ_SEED:-$$(date +%s)}; echo "FUZZ_SEED=$$seed"; \
	  FUZZ_TIMES=$${FUZZ_TIMES:-20} FUZZ_SEED=$$seed $(LOCAL) run -- $(BIN)/python -m pytest -n 0 -q tests/fuzz $(ARGS)

audit: $(AUDIT)/.installed $(STAMP) $(LOWEST)/.installed ## known holes in the newest and the oldest libraries; says so where no list of them can be reached
	@$(BIN)/python tests/audit.py $(AUDIT)/bin/pip-audit $(BIN)/python $(LOWEST)/bin/python

# What leans hardest on other libraries; the whole suite runs on the newest ones.
LOWEST_TESTS := tests/unit tests/contract $(addprefix tests/integration/test_,outbox_publish.py wrap.py inbox.py relay.py half_fence.py)

lowest: $(LOWEST)/.installed ## run the core tests on the oldest libraries we promise to work with
	@$(LOWEST)/bin/python compose/local.py --in-memory run -- $(LOWEST)/bin/python -m pytest $(WORKERS) -q $(LOWEST_TESTS) $(ARGS)

bench: $(BENCH)/.installed ## measure against the peers, 20 minutes; QUICK=1: only whether it all runs, 2 minutes
	@$(BENCH)/bin/python -m tests.benchmarks $(if $(QUICK),--quick) $(ARGS)

bench-scale: $(BENCH)/.installed ## the rows of a million messages and more
	@$(BENCH)/bin/python -m tests.benchmarks --scale $(if $(QUICK),--quick) $(ARGS)

# The chain without the fast path: every frame goes through aiormq.
ONLY_BULK := cannot_be_read_cost_one_message # aiormq itself gives the connection up (reliability B1)
PLAIN_TESTS := tests/chaos/test_relay_killed.py $(addprefix tests/integration/test_,relay.py inbox.py consumer.py errors_verbs.py publisher.py)

plain: $(STAMP) ## run the chain's tests with bulk frames switched off
	@RELMSG_BULK=off $(LOCAL) --in-memory run -- $(BIN)/python -m pytest $(WORKERS) -q $(PLAIN_TESTS) -k 'not $(ONLY_BULK)' $(ARGS)

NEWEST_TESTS := tests/contract tests/assumptions/test_postgresql.py $(addprefix tests/chaos/test_,relay_killed.py half_producer_killed.py) \
  $(addprefix tests/integration/test_,relay.py relay_scale.py inbox.py outbox_publish.py consumer.py)

newest: $(STAMP) ## run the core tests on RabbitMQ 4 and PostgreSQL 17
	@$(LOCAL) --rabbitmq 4 --postgres 17 --in-memory run -- $(BIN)/python -m pytest $(WORKERS) -q $(NEWEST_TESTS) $(ARGS)

check: lint types layers ## lint, types and layers

lint: $(STAMP) ## ruff: rules and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: $(STAMP) ## mypy, strict
	$(BIN)/mypy

layers: $(STAMP) ## import-linter: the arrows between packages
	$(BIN)/lint-imports

services: $(STAMP) ## PostgreSQL and RabbitMQ until Ctrl-C; ARGS=--management for its interface
	@$(LOCAL) up $(ARGS)

clean: ## remove .venv, caches and what local services left
	rm -rf $(VENV) $(LOWEST) $(BENCH) $(AUDIT) .local .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Debian keeps ensurepip in a package of its own. pip reads [dependency-groups] since 25.1.
$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "make: $(PYTHON) is too old or missing: install Python 3.11 or newer, or say make PYTHON=python3.12" >&2; exit 3; }
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "installing python3-venv"; \
	    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-venv; } >/dev/null; \
	  else \
	    echo "make: $(PYTHON) has no ensurepip: install it (Debian: apt-get install python3-venv)" >&2; exit 3; \
	  fi; \
	fi
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV)
	@echo "installing relmsg and what its tests need into $(VENV)"
	@$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BIN)/python -m pip install --quiet --editable . --group dev
	@touch $@

$(LOWEST)/.installed: pyproject.toml tests/lowest.txt $(STAMP)
	@[ -x $(LOWEST)/bin/python ] || $(PYTHON) -m venv $(LOWEST)
	@echo "installing the oldest libraries into $(LOWEST)"
	@$(LOWEST)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(LOWEST)/bin/python -m pip install --quiet --constraint tests/lowest.txt --editable '.[pydantic,crypto]' \
	  pytest pytest-asyncio pytest-xdist hypothesis aiomysql aiosqlite trustme
	@touch $@

$(AUDIT)/.installed: $(STAMP)
	@[ -x $(AUDIT)/bin/python ] || $(PYTHON) -m venv $(AUDIT)
	@echo "installing pip-audit into $(AUDIT)"
	@$(AUDIT)/bin/python -m pip install --quiet 'pip-audit>=2.7,<3'
	@touch $@

$(BENCH)/.installed: pyproject.toml tests/benchmarks/requirements.txt $(STAMP)
	@[ -x $(BENCH)/bin/python ] || $(PYTHON) -m venv $(BENCH)
	@echo "installing relmsg and its peers into $(BENCH)"
	@$(BENCH)/bin/python -m pip install --quiet --upgrade 'pip>=25.1'
	@$(BENCH)/bin/python -m pip install --quiet --editable . --requirement tests/benchmarks/requirements.txt || \
	  { echo "the peers cannot be had here: their rows will say so" >&2; \
	    $(BENCH)/bin/python -m pip install --quiet --editable .; }
	@touch $@
