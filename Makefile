# make demo | test | lint | docs | bench | mutants | clean: the first call also sets up the environment.
# make gpu takes the environment as it is, because a GPU machine may have no network.
#
#   PYTHON=python3.12    the interpreter that creates the environment (3.11 or later)
#   VENV=dir             the environment's directory (default .venv); VENV= uses the active environment as it is
#   TORCH_INDEX=url      package index to install torch from, such as PyTorch's own for CPU builds (200 MB, not 3 GB)
#   WORKERS=2            number of test processes
#   ARGS="-k retrieval"  further arguments for pytest

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
TORCH_INDEX ?=
ARGS ?=
EXTRAS := dev,demo,docs,evaluate,export,fonts,heic,milvus,mteb,prepare,qdrant,scale,search

ifneq ($(strip $(VENV)),)
  PREFIX := $(abspath $(VENV))
  # the same as `source $(VENV)/bin/activate`, for every recipe
  RUN := export VIRTUAL_ENV="$(PREFIX)" PATH="$(PREFIX)/bin:$$PATH";
  PY := python
  export PYTHONNOUSERSITE := 1
else
  PREFIX := $(shell $(PYTHON) -c 'import sys; print(sys.prefix)')
  RUN :=
  PY := $(PYTHON)
endif

# Inside the environment, so that it is deleted with it; named after the checkout, because several can share one.
STAMP := $(PREFIX)/.mclip_fairseq$(subst /,_,$(CURDIR))
CODE := $(wildcard mclip_fairseq preprocess examples benchmarks tests docs)
SCRIPTS := .ci/run $(sort $(shell find examples preprocess benchmarks -name '*.sh' -o -name '*.sbatch' 2>/dev/null))

export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup demo test lint docs bench gpu mutants clean

help:
	@echo 'make demo    train and evaluate a small multilingual CLIP on emoji (10 minutes on 2 cores)'
	@echo 'make test    run the tests                make lint    ruff, mypy and shellcheck'
	@echo 'make docs    build the documentation as a site in site/'
	@echo 'make bench   measure speed and memory     make clean   remove caches and build products'
	@echo 'make gpu     test and measure on one GPU, in 8 minutes at most and without a network'
	@echo 'make mutants put faults into the code, one by one, and see which no test notices (ARGS="sealed optim" chooses)'
	@echo 'make setup   only set up the environment; VENV= uses the active one, PYTHON= chooses the interpreter'

setup: $(STAMP)

demo: $(STAMP)
	@$(RUN) bash examples/quickstart/run.sh

# Whole files to a worker, in their order: the long ones come first, where they keep no worker waiting at the end.
test: $(STAMP)
	@$(RUN) $(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(STAMP)
	@$(RUN) ruff check . && ruff format --check . && $(PY) -m mypy $(CODE) && shellcheck $(SCRIPTS)

# The variable silences an announcement of mkdocs-material.
docs: $(STAMP)
	@$(RUN) NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet && echo 'site/index.html is the start page'

bench: $(STAMP)
	@$(RUN) $(PY) -m benchmarks

# 170 and 290 seconds at most; no section of the benchmark begins after 230. It also runs where a test has failed.
gpu:
	-@$(RUN) $(PY) -m mclip_fairseq.doctor
	@$(RUN) MCLIP_TEST_GPU=1 timeout 170 $(PY) -m pytest -m gpu -p no:cacheprovider tests/gpu; tests=$$?; \
	  timeout 290 $(PY) -m benchmarks.gpu --budget 230 --out $(or $(OUT),runs/gpu) && exit $$tests

mutants: $(STAMP)
	@$(RUN) $(PY) -m tests.mutants $(ARGS)

clean:
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(CODE) -name __pycache__ -type d -prune -exec rm -rf {} +

$(STAMP): constraints.txt pyproject.toml setup.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: $(PYTHON) is not Python 3.11 or later; install one and name it: make $(MAKECMDGOALS) PYTHON=python3.11" >&2; exit 1; }
ifneq ($(strip $(VENV)),)
	@test -x "$(PREFIX)/bin/python" || $(PYTHON) -m venv "$(PREFIX)" || { \
	  echo "make: $(PYTHON) cannot create a virtual environment; install its venv module (apt install python3-venv)" >&2; exit 1; }
endif
	@# An active environment with torch keeps its versions; any other gets those of constraints.txt.
	@$(RUN) set -e; pins=constraints.txt; \
	  if [ -z "$(strip $(VENV))" ] && $(PY) -c 'import torch' 2>/dev/null; then pins=/dev/null; fi; \
	  step() { echo "== pip install $$*"; $(PY) -m pip install -c $$pins "$$@"; }; \
	  step --upgrade pip setuptools wheel; \
	  if [ -n "$(TORCH_INDEX)" ]; then step torch --index-url "$(TORCH_INDEX)"; fi; \
	  step --no-build-isolation -e '.[$(EXTRAS)]'; \
	  PIP_CONSTRAINT=$$pins $(PY) -m mclip_fairseq.doctor --fix
	@touch "$@"
