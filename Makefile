# `make train` and `make test` need Python 3.11 or newer and make: .venv is made and filled on first
# use, and filled again when pyproject.toml changes.
PYTHON ?= python3
EXTRAS ?=
ARGS ?=
WORKERS ?= 2
NOTEBOOKS ?= small

VENV := .venv
NEWEST := .venv-newest
COMMA := ,
PIP := -m pip --disable-pip-version-check install -qq
# libtpu, where it is installed, would look for a TPU.
TEST_ENV := JAX_PLATFORMS=cpu TPU_SKIP_MDS_QUERY=1
# Its theme's banner about the next version of MkDocs is no warning of ours.
DOCS_ENV := $(TEST_ENV) NO_MKDOCS_2_WARNING=1
# Without EXTRAS there is no accelerator to look for, even where the tests have brought libtpu.
TRAIN_ENV := $(if $(EXTRAS),,JAX_PLATFORMS=cpu)
# On the newest jax the tests also compile as users' programs do (tests/conftest.py).
NEWEST_ENV := $(TEST_ENV) JAX_DISABLE_MOST_OPTIMIZATIONS=0
PYTEST := -m pytest -n $(WORKERS) --dist worksteal
TRAIN_STAMP := $(VENV)/.train$(subst $(COMMA),-,$(EXTRAS:%=-%))
NEWEST_TESTS := $(wildcard tests/core tests/testing tests/pallas_kernels tests/transformer \
  tests/slots tests/parametric tests/recurrent)
# The kernels' own tests are for the jax that the tests' environment has; they move with Pallas, and
# the exchanges that test_layouts.py counts move with the compiler.
NEWEST_SHORT := tests/core tests/pallas_kernels/test_embedding_bag.py \
  tests/pallas_kernels/test_product_key_topk.py tests/testing/test_laws.py \
  -k '(not test_laws.py or stack or language-model or ntm-lstm or product-keys-rms) and not one_seed and not test_layouts.py'

.PHONY: help train test test-slow plans lint format test-newest test-newest-short docs clean
help:
	@echo 'make train              train the default model into runs/text; more flags: ARGS="--config.steps=100"'
	@echo '                        on an accelerator: EXTRAS=cuda13 or EXTRAS=tpu'
	@echo 'make test               all tests but the slow ones; one of them: ARGS="tests/core -k select"'
	@echo 'make test-slow          the slow tests'
	@echo 'make plans              docs/plans, what pods need and take, compiled anew'
	@echo 'make lint | format      ruff and pyright | ruff mends what it can'
	@echo 'make test-newest        laws and ops on the newest Python and jax here (-short: a part of them)'
	@echo 'make docs               the documentation as a site, in site/; its notebooks are run: NOTEBOOKS=small, full or none'
	@echo 'make clean              remove environments and caches'

train: $(TRAIN_STAMP)
	$(TRAIN_ENV) $(VENV)/bin/python -m experiments.train --config=experiments/configs/text.py --workdir=runs/text $(ARGS)

test: $(VENV)/.test
	$(TEST_ENV) $(VENV)/bin/python $(PYTEST) $(ARGS)

test-slow: $(VENV)/.test
	$(TEST_ENV) $(VENV)/bin/python -m pytest -m slow $(ARGS)

plans: $(VENV)/.test
	$(TEST_ENV) $(VENV)/bin/python -m experiments.plan --all $(ARGS)

lint: $(VENV)/.test
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

format: $(VENV)/.test
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

test-newest: $(NEWEST)/.laws
	$(NEWEST_ENV) $(NEWEST)/bin/python $(PYTEST) $(NEWEST_TESTS) $(ARGS)

test-newest-short: $(NEWEST)/.laws
	$(NEWEST_ENV) $(NEWEST)/bin/python $(PYTEST) $(NEWEST_SHORT) $(ARGS)

docs: $(VENV)/.docs
	$(DOCS_ENV) NOTEBOOKS=$(NOTEBOOKS) $(VENV)/bin/mkdocs build --strict

clean:
	rm -rf $(VENV) $(NEWEST) .pytest_cache .ruff_cache dist build site

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo 'memjax needs Python 3.11 or newer, but `$(PYTHON)` is not one. Name another: make PYTHON=python3.12 ...' >&2; exit 1; }
	@rm -rf $(VENV)
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(TRAIN_STAMP): $(VENV)/.made pyproject.toml
	@echo 'Filling $(VENV) for training (about a minute, once) ...'
	@$(VENV)/bin/python $(PIP) -e '.[train$(EXTRAS:%=$(COMMA)%)]'
	@touch $@

$(VENV)/.test: $(VENV)/.made pyproject.toml
	@echo 'Filling $(VENV) for the tests (about a minute, once) ...'
	@$(VENV)/bin/python $(PIP) -e '.[test]'
	@touch $@

$(VENV)/.docs: $(VENV)/.made pyproject.toml
	@echo 'Filling $(VENV) for the documentation (about a minute, once) ...'
	@$(VENV)/bin/python $(PIP) -e '.[docs]'
	@touch $@

$(NEWEST)/.laws: pyproject.toml .ci/newest-python
	@rm -rf $(NEWEST)
	@newest=$$(sh .ci/newest-python $(PYTHON)) && "$$newest" -m venv $(NEWEST)
	@echo 'Filling $(NEWEST) with the newest versions that pyproject.toml allows ...'
	@$(NEWEST)/bin/python $(PIP) --upgrade --upgrade-strategy eager -e '.[laws]'
	@touch $@
