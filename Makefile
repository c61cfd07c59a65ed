# A thin list of commands; each can be typed by hand as well. `make` alone prints this list.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help

VENV  ?= .venv
BIN   := $(VENV)/bin
STAMP := $(VENV)/.installed
TORCH ?= torch==2.13.0
# The first Python of the supported range; `make PYTHON=… setup` takes another one.
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null && { echo $$p; break; }; done)
PYTEST_ARGS ?=

.PHONY: help setup demo test check test-gpu nightly proto lifecycle clean

help: ## print this list
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything in it (quick when it is there)

# torch comes first and alone: a plain requirement would bring the newest CUDA build, whatever is at hand.
$(STAMP): pyproject.toml constraints.txt
	@[[ -x $(BIN)/python || -n "$(PYTHON)" ]] || { echo "setup: no Python 3.11, 3.12 or 3.13 on the PATH; install one, or: make PYTHON=/path/to/python setup"; exit 1; }
	@[[ -x $(BIN)/python ]] || $(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "setup: this Python cannot make environments (on Debian and Ubuntu: apt install python3-venv)"; exit 1; }
	$(BIN)/python -m pip install --quiet --upgrade pip
	@$(BIN)/python -c 'import importlib.metadata as m; print("setup: torch", m.version("torch"), "is there")' 2>/dev/null \
		|| $(BIN)/python .ci/announce.py -c constraints.txt $(TORCH)
	$(BIN)/python -m pip install -c constraints.txt $(TORCH)
	@echo "setup: now everything else, about 650 MB (ray, triton, transformers, helm and some hundred small ones); a few minutes"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@$(BIN)/python -c 'import torch; print("setup: torch", torch.__version__, "· CUDA", torch.version.cuda or "none", "· GPUs", torch.cuda.device_count())'
	@touch $(STAMP)

demo: setup ## start a small cluster, stream answers through it, check them, print the goodput table
	$(BIN)/penstock demo

# Tests of live processes have the machine to themselves; all others run two files at a time.
APART := tests/bench tests/dashboard tests/live tests/ray tests/service tests/transports
PYTEST := $(BIN)/python -m pytest -m "not gpu and not helm" --allowed-skips tests/allowed_skips.txt

test: setup ## all tests that need no GPU and no Helm: unmarked, slow and Ray; a skip must be on the list
	$(PYTEST) -n 2 --dist loadfile $(addprefix --ignore=,$(APART)) $(PYTEST_ARGS)
	$(PYTEST) $(APART) $(PYTEST_ARGS)

check: setup ## lint, format, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test-gpu: ## the GPU tests, with this machine's own python3 (torch, triton, cupy, pytest); no setup, Ray or gRPC
	python3 -m pytest tests/gpu -m gpu $(PYTEST_ARGS)

nightly: setup ## chaos over 10,000 seeds; the report goes to build/chaos.json
	mkdir -p build
	$(BIN)/python -m cluster.simulated.chaos --seeds 10000 --json build/chaos.json

proto: setup ## write the gRPC stubs from cluster/api/v1/*.proto, and the list of what is published
	$(BIN)/python -m cluster.api.generate
	$(BIN)/python -m cluster.api.published

lifecycle: setup ## write docs/lifecycle.md from core/lifecycle.py
	$(BIN)/python -m core.lifecycle > docs/lifecycle.md.new
	mv docs/lifecycle.md.new docs/lifecycle.md

clean: ## remove .venv and every cache
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
