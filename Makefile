# Tenora: everything a person or a CI needs, from an empty clone.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STORE  ?= store
# Two processes, each with whole files, as most tests wait for servers and commands.
TESTING ?= -n 2 --dist loadfile
BENCH  ?= --quick --json build/bench.json
# Two threads are the most that pay on small machines; more make every kernel slower.
export OMP_NUM_THREADS ?= 2

.DEFAULT_GOAL := help
.PHONY: help demo serve adapters test test-all postgres lint format bench image clean

help: ## what can be made
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-9s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# An environment to use Tenora, and one to work on it: the second adds to the first.
$(VENV)/.use: pyproject.toml | $(BIN)/python
	@echo "installing Tenora into $(VENV) (a few minutes the first time)"
	@date +%s > $(VENV)/.started
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[train]'
	@echo $$(( $$(date +%s) - $$(cat $(VENV)/.started) )) > $(VENV)/.install_seconds
	@touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	@echo "installing Tenora and its tests into $(VENV) (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@ $(VENV)/.use

demo: $(VENV)/.use ## set up, train two adapters, serve both from one base, swap one under load
	$(BIN)/python -m examples.demo

serve: $(VENV)/.use ## serve the embedded base, its example adapters and what is in ./store (STORE=…)
	$(BIN)/tenora serve --store $(STORE) --examples

adapters: $(VENV)/.use ## train again the adapters that come with the embedded base
	$(BIN)/python -m models.make_adapters

test: $(VENV)/.dev ## the whole suite but what is marked slow or needs weights from a hub
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTING) -m "not slow and not weights"

test-all: $(VENV)/.dev ## the slow ones too
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(TESTING) -m "not weights"

postgres: ## install PostgreSQL's server for the tests that use one (Debian, as root)
	@ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || command -v initdb >/dev/null \
	  || (apt-get update -qq && apt-get install -y -qq --no-install-recommends postgresql)

lint: $(VENV)/.dev ## ruff and strict mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.dev ## let ruff mend what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(VENV)/.dev ## measure against PEFT, transformers and llama.cpp on this machine (BENCH="--quick --llama-server …")
	$(BIN)/python -m bench.serving $(BENCH)

image: ## the container image (docker build; see Dockerfile for its arguments)
	docker build --tag tenora .

clean: ## remove the environment and everything built; the store stays
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
