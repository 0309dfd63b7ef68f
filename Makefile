# make demo | test | lint | docs | bench | mutants | clean: the first call also sets up the environment.
# make gpu takes the environment as it is, because a GPU machine may have no network.
#
#   PYTHON=python3.12    the interpreter that creates the environment (3.11 or later)
#   VENV=dir             the environment's directory (default .venv); VENV= uses the active environment as it is
#   WORKERS=2            number of test processes
#   ARGS="-k retrieval"  further arguments for pytest

SHELL := /bin/bash
PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
ARGS ?=
EXTRAS := dev,demo,docs,evaluate,export,heic,prepare,search

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
BENCHMARKS := $(patsubst benchmarks/%.py,benchmarks.%,$(filter-out benchmarks/_%,$(wildcard benchmarks/*.py)))

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
	@$(RUN) set -e; for name in $(BENCHMARKS); do echo "== $$name"; $(PY) -m "$$name"; done

# 170 and 290 seconds at most; no section of the benchmark begins after 230.
gpu:
	@$(RUN) $(PY) -m mclip_fairseq.doctor
	@$(RUN) MCLIP_TEST_GPU=1 timeout 170 $(PY) -m pytest -m gpu -p no:cacheprovider tests/gpu
	@$(RUN) timeout 290 $(PY) -m benchmarks.gpu --budget 230 --out $(or $(OUT),runs/gpu)

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
	@$(RUN) $(PY) -c 'import fairseq' 2>/dev/null || { \
	  command -v $${CXX:-c++} >/dev/null || { \
	    echo "make: no C++ compiler ($${CXX:-c++}) to build fairseq with; install one (apt install g++) or set CXX" >&2; exit 1; }; \
	  test -f "$$($(PY) -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" || { \
	    echo "make: Python.h, which building fairseq needs, is missing; install Python's headers (apt install python3-dev)" >&2; exit 1; }; }
	@# An active environment with torch keeps its versions; any other gets those of constraints.txt.
	@$(RUN) set -e; pins="-c constraints.txt"; \
	  step() { echo "== pip install $$*"; $(PY) -m pip install --quiet $$pins "$$@"; }; \
	  if [ -z "$(strip $(VENV))" ] && $(PY) -c 'import torch' 2>/dev/null; then pins=""; else \
	    step --upgrade pip; \
	    step torch numpy cython setuptools wheel; \
	    step --no-build-isolation fairseq-fixed; fi; \
	  step --no-build-isolation -e '.[$(EXTRAS)]'
	@# fairseq requires torchaudio, but only its speech tasks use it. One that cannot be loaded breaks transformers.
	@$(RUN) $(if $(strip $(VENV)),$(PY) -c 'import torchaudio' >/dev/null 2>&1 || $(PY) -m pip uninstall --quiet --yes torchaudio,:)
	@$(RUN) $(PY) -m mclip_fairseq.doctor
	@touch "$@"
