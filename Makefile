# Everything sets itself up in .venv; PYTHON=/path/to/python3 chooses another interpreter.

BENCHES := $(filter-out report,$(basename $(notdir $(wildcard tests/bench/[a-z]*.py))))
PY := .venv/bin/python

# A caller's environment or pip configuration must not reach into .venv.
unexport VIRTUAL_ENV PYTHONPATH PYTHONHOME PIP_TARGET PIP_PREFIX
export PIP_USER := 0
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PYTHON

.NOTPARALLEL:
.PHONY: help demo test lint types layers pytest hil audit bench torture fuzz deps setup setup-dev clean

help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/make \1|\2/p' Makefile | awk -F'|' '{ printf "%-12s %s\n", $$1, $$2 }'

demo: setup ## the whole loop on real weather readings, in about a minute; ENGINE=URL routes by another
	@$(PY) -m gateway.demo $(if $(ENGINE),--engine '$(ENGINE)')

test: HIL := --emulated
test: lint layers types pytest hil audit ## everything that is checked, checked

lint: setup-dev ## style (ruff)
	@$(PY) -m ruff check --quiet
	@$(PY) -m ruff format --check --quiet || { $(PY) -m ruff format --diff --quiet; exit 1; }

layers: setup-dev ## which module may import which (import-linter)
	@$(PY) -c 'from importlinter.cli import lint_imports_command as run; run()' --no-logo

types: setup-dev ## types (mypy --strict)
	@$(PY) -m mypy

pytest: setup-dev ## the tests; ARGS="-k outbox" chooses some
	@sh tools/deps.sh mosquitto redis-server nats-server strace || true
	@$(PY) -m pytest $(ARGS)

hil: setup-dev ## the tests on two radios, real ones if they are plugged in; ARGS="--emulated": docs/hil.md
	@$(PY) -m pytest hil $(HIL) $(ARGS)

audit: setup-dev ## known vulnerabilities of what is installed (pip-audit)
	@$(PY) tools/audit.py

bench: ## measure; BENCH=name chooses one; results in build/bench/
	@sh tools/setup.sh gateway,mesh,dev,bench || sh tools/setup.sh gateway,mesh,dev # without LXMF, then
	@wrong=0; for bench in $(or $(subst -,_,$(BENCH)),$(BENCHES)); do \
		echo "$$bench"; $(PY) -m tests.bench.$$bench || wrong=1; \
	done; exit $$wrong

torture: setup-dev ## kill -9 the stores 1,000 times and look; ARGS="--kills 100"; build/torture.json
	@$(PY) -m tests.torture $(ARGS)

fuzz: ## fuzz every decoder, FUZZ_SECONDS=60 each; ARGS="packet" chooses; build/fuzz.json
	@sh tools/setup.sh gateway,mesh,dev,fuzz
	@$(PY) -m tests.fuzz $(ARGS)

deps: ## install what only root can: python3-venv, mosquitto, redis, nats, strace
	@sh tools/deps.sh

setup:
	@sh tools/setup.sh gateway,mesh

setup-dev:
	@sh tools/setup.sh gateway,mesh,dev

clean: ## remove everything made here, .venv too
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
