# SplitEasy's targets. `make` alone teaches them; nothing here needs more than Python 3.11 and GNU make.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
WORKERS ?= 2
DEVICES ?= 4
PYTEST_ARGS ?=
SEEDS ?= 10000
SEED ?=
TLS ?=
DEVICE ?=
QUEUES ?=
MINUTES ?= 10
ONLY ?=
# Each takes whole files, in their order (the long chaos comes early), with a broker and a store of its own. Many tests
# wait for other processes: three at once are faster on two cores than two are.
TEST_JOBS ?= 3
PEERS ?=
HOSTS ?=
INVENTORY ?=
SSH ?=

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
CODE := spliteasy spliteasy_cli broker device_agent server_worker deploy testing tests examples benchmarks

# Several processes share the cores here: one thread each is faster than all of them fighting for all,
# and the number of threads is part of what makes a run bit-identical.
export OMP_NUM_THREADS ?= 1

.PHONY: help setup deps demo demo-web test test-long parity bench bench-plan simulate chaos attack audit lint docs format \
  deploy-agents undeploy-agents up down status dashboard logs scale roll clean distclean

help: ## This list
	@echo "SplitEasy: train models on data that stays on the devices."
	@echo
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' \
	  | while IFS=$$'\t' read -r name text; do printf '  make %-15s %s\n' "$$name" "$$text"; done
	@echo
	@echo "First time here?  make demo      then look at runs/demo/report.png"
	@echo "The real thing?   make up        RabbitMQ, Redis and workers; it says what to type next"

setup: $(READY) ## Virtual environment in .venv with everything (skipped when done)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "error: Python 3.11 or newer is needed, $(PYTHON) is not (name another: make PYTHON=python3.12 $(MAKECMDGOALS))" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || { \
	  echo "error: Python's venv module is missing (on Debian or Ubuntu: sudo apt-get install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing PyTorch, then the rest: some minutes the first time"
	$(BIN)/pip install $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) '$(TORCH)'
	$(BIN)/pip install --quiet --editable '.[dev]'
	$(BIN)/pip install --quiet --no-deps pytorchcv
	@touch $@

demo-web: setup ## A page to draw digits on, train and see them recognized, in a browser on this machine
	@mkdir -p runs
	$(BIN)/python -m examples.digits.samples runs/digits-samples.json
	$(BIN)/spliteasy browser examples/digits/browser.toml --samples runs/digits-samples.json

demo: setup ## One model from 4 phones of which none has seen all ten digits, in one process
	$(BIN)/spliteasy train examples/fleet/job.toml --devices $(DEVICES) --workers $(WORKERS) --alone --out runs/demo
	@$(BIN)/spliteasy leakage examples/fleet/job.toml --short

up: setup ## Start RabbitMQ, Redis and WORKERS=2 workers in the background; TLS=1: encrypted, enrolled; SHARDS=64: for up to 64 workers; QUEUES=quorum; DEVICE=cuda:0: on a GPU
	@$(BIN)/python -m deploy.local up --workers $(WORKERS) $(if $(SHARDS),--shards $(SHARDS)) $(if $(QUEUES),--queues $(QUEUES)) $(if $(DEVICE),--device $(DEVICE)) $(if $(filter-out 0,$(TLS)),--tls)

status: setup ## What runs of the local stack, its jobs and sessions
	@$(BIN)/python -m deploy.local status

dashboard: setup ## A web page of the local stack, on http://127.0.0.1:8080/
	@$(BIN)/spliteasy dashboard

logs: setup ## Follow the local stack's logs
	@$(BIN)/python -m deploy.local logs

scale: setup ## Change the number of local workers: make scale WORKERS=4
	@$(BIN)/python -m deploy.local scale $(WORKERS)

roll: setup ## Replace the local workers one by one, as after an upgrade: trainings go on
	@$(BIN)/python -m deploy.local roll

down: setup ## Stop the local stack; its state stays
	@$(BIN)/python -m deploy.local down

DEPLOY_AGENTS = $(BIN)/python -m deploy.agents
WHERE = $(HOSTS) $(if $(INVENTORY),--inventory '$(INVENTORY)') $(if $(SSH),--ssh='$(SSH)')

deploy-agents: setup ## Agents on devices by ssh, upgraded too: HOSTS="data=… pi@host-a pi@host-b" or INVENTORY=FILE
	@$(DEPLOY_AGENTS) deploy $(WHERE)

undeploy-agents: setup ## Stop and remove them; their state stays
	@$(DEPLOY_AGENTS) undeploy $(WHERE)

clean: setup ## Stop the local stack and delete its state and all runs
	@$(BIN)/python -m deploy.local clean
	rm -rf runs build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

distclean: clean ## The same, and the virtual environment too
	rm -rf $(VENV) *.egg-info

deps: ## Install RabbitMQ and Redis through apt
	@bash deploy/install_deps.sh

lint: setup ## ruff check, ruff format --check, mypy --strict
	$(BIN)/ruff check $(wildcard $(CODE))
	$(BIN)/ruff format --check $(wildcard $(CODE))
	$(BIN)/mypy

docs: setup ## Write docs/commands.md from the parser, and draw ARCHITECTURE.md's states from their table
	$(BIN)/python -m spliteasy_cli.command_reference > docs/commands.md
	$(BIN)/python -m spliteasy_cli.state_diagram ARCHITECTURE.md

format: setup ## Format the code
	$(BIN)/ruff check --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

test: setup lint ## Lint and all tests, against real RabbitMQ, Redis and OpenSSH
	@bash deploy/install_deps.sh --tests
	$(BIN)/python -m pytest -n $(TEST_JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

test-long: setup deps ## The long sweeps (many seeds, many mutations)
	$(BIN)/python -m pytest -m long $(PYTEST_ARGS)

parity: setup ## Twenty-one networks, the paper's six among them: split against plain PyTorch, bit for bit
	@$(BIN)/python -m benchmarks.parity

bench: setup deps ## Speed, memory, links, codecs, with the goals beside the figures: [ONLY="links flaky"] [PEERS=1: other systems too]
	@$(if $(filter-out 0,$(PEERS)),$(BIN)/pip install --quiet --editable '.[peers]')
	@$(BIN)/python -m benchmarks $(if $(ONLY),--only $(ONLY))

bench-plan: setup deps ## The planner's predictions and cuts against measurements on emulated links
	@$(BIN)/python -m benchmarks.plan

simulate: setup ## Trainings under seeded faults, virtual time: SEEDS=10000, or SEED=N to replay one
	@$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(SEEDS))

chaos: setup deps ## Real processes killed, paused, cut off: MINUTES=10 [SEED=1]; then the equality
	@$(BIN)/python -m tests.chaos --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

attack: setup deps ## A hostile device and an outsider against a broker and a worker: a table, violations=0
	@$(BIN)/python -m tests.attack

audit: setup ## Installed dependencies: complete, licences, and known vulnerabilities where pip-audit is there
	@$(BIN)/python -m deploy.audit
