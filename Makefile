# make study   sets everything up and runs the papers' study on embedded data -> runs/demo/report/index.html
# make test    sets everything up and passes the tests
# make benchmark-heads, -input, -pretrain, -contrastive    measure beside PyTorch -> docs/benchmarks.md
# make lint, make test-peers (against PyTorch), make clean (removes the environments, never a result)
#
# PYTHON=python3.12 LATEST=1 uses that interpreter and the newest versions in place of the pinned ones.

PYTHON ?= python3
LATEST ?=
WORKDIR ?= runs/demo
CONFIG ?= configs/study/demo.py
ARGS ?=

VENV := .venv$(if $(LATEST),-latest-$(notdir $(PYTHON)))
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CACHE := runs/.compiled
# Compiling is most of what the tests do, on one core each.
PYTEST := $(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=loadfile
# Without their dependencies: torchvision asks for one exact torch, and with it for CUDA libraries, but its models and
# transforms, which are what the tests compare with, run on any torch (tests/torch_peers.py).
TORCH_PEERS := $(if $(LATEST),torchvision timm open_clip_torch,torchvision==0.28.0 timm==1.0.31 open_clip_torch==3.3.0)

.PHONY: study test lint test-peers setup clean
study: setup
	$(BIN)/python -m nml_jax.main --config=$(CONFIG) --workdir=$(WORKDIR) --compilation_cache=$(CACHE) $(ARGS)

test: setup
	$(PYTEST) -m "not peers" $(ARGS)

test-peers: $(VENV)/.peers
	$(PYTEST) -m peers $(ARGS)

benchmark-%: $(VENV)/.peers
	$(BIN)/python -m benchmarks.$* $(ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

setup: $(VENV)/.installed

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "nml_jax needs Python 3.11 or newer: make ... PYTHON=python3.11")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(VENV)/bin/python
	$(PIP) $(if $(LATEST),--upgrade,-r requirements.txt) --editable '.[dev]'
	touch $@

$(VENV)/.peers: $(VENV)/.installed
	$(PIP) --editable '.[peers]'
	$(PIP) --no-deps $(if $(LATEST),--upgrade,) $(TORCH_PEERS)
	touch $@

clean:
	rm -rf .venv .venv-latest-*
