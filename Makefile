# Everyday work. `make train` and `make test` are all a newcomer needs: each makes the environment in .venv first.
PYTHON ?= python3
# More options for pip, for example a CPU-only torch: make train PIP_OPTIONS="--extra-index-url https://download.pytorch.org/whl/cpu"
PIP_OPTIONS ?=
# Processes that run the tests, each with one thread of torch; "auto" is one a core.
JOBS ?= auto
PYTEST := -n $(JOBS) --maxprocesses 8 --dist loadfile
BIN := .venv/bin

# Of `make test-lowest`: lowest, or shared, the one of .venv, as the lowest is a download of several GB.
TORCH ?= lowest
CORE := tests/models/test_maps.py tests/models/test_allocation.py tests/estimators/test_one_member.py \
	tests/estimators/test_shaping.py tests/tasks/test_tokenizers.py tests/cli/test_other_platforms.py

# Caps the vectors of torch, of its libraries, of numpy and of zorn's own steps, as on a processor without AVX.
BASELINE := ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_CBWR=COMPATIBLE OPENBLAS_CORETYPE=Nehalem ZORN_CPU_KERNELS=baseline

.PHONY: help train test test-lowest coverage types faults test-baseline quick golden lint format docs docs-serve benchmarks clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

.venv/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; v >= (3, 11) or sys.exit(f"zorn needs Python 3.11 or newer, this is {v[0]}.{v[1]}: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) "$$(grep '^torch==' constraints.txt)"
	$(BIN)/python -m pip install --quiet $(PIP_OPTIONS) --constraint constraints.txt --editable '.[dev]'
	@touch $@

train: .venv/.ready  ## the main job: an LSTM learns the Python documentation with forward passes only, about 3 minutes
	$(BIN)/zorn train --preset quickstart --overwrite

test: .venv/.ready  ## the whole test suite, on every core
	$(BIN)/python -m pytest $(PYTEST)

coverage: .venv/.ready  ## the same, with the lines that no test reaches; fails under 90 %
	$(BIN)/python -m pytest $(PYTEST) --cov --cov-report=term

test-baseline: .venv/.ready  ## the tests of arithmetic with the instructions of a processor without AVX
	$(BASELINE) $(BIN)/python -m pytest $(PYTEST) -q tests/golden tests/kernels tests/native tests/models

# Checking shapes and types in every call doubles the time of the tests, so that it is done where all of the
# public functions are called once: the examples in docstrings and the code of the documentation.
TYPED ?= tests/package

types: .venv/.ready  ## shapes and types of every call, as jaxtyping has them in signatures; TYPED=tests: the whole suite
	$(BIN)/python -m pytest $(PYTEST) --jaxtyping-packages=zorn,beartype.beartype $(TYPED)

.venv-lowest/.ready-$(TORCH): pyproject.toml constraints-lowest.txt $(if $(filter shared,$(TORCH)),.venv/.ready)
	rm -rf .venv-lowest
	$(PYTHON) -m venv .venv-lowest
ifeq ($(TORCH),shared)
	.venv-lowest/bin/python -m pip install --quiet $(PIP_OPTIONS) $$(grep -v '^#\|^torch==' constraints-lowest.txt)
	$(BIN)/python -c 'import os, sysconfig; print(os.getcwd(), sysconfig.get_path("purelib"), sep="\n")' > \
		$$(.venv-lowest/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/shared.pth
else
	.venv-lowest/bin/python -m pip install --quiet $(PIP_OPTIONS) --constraint constraints-lowest.txt \
		--editable . pytest beartype hypothesis
endif
	@touch $@

test-lowest: .venv-lowest/.ready-$(TORCH)  ## the core of the suite at the lowest versions that are accepted
	.venv-lowest/bin/python -m pytest -q $(CORE)

faults: .venv/.ready  ## 50 runs that are killed at every point and at random, 4 of which a worker hangs, 3 under torchrun
	$(BIN)/python tests/distributed/fault_injection.py --runs 50

quick: .venv/.ready  ## the tests without the slow ones, stopping at the first failure
	$(BIN)/python -m pytest $(PYTEST) -x -q -m "not slow"

golden: .venv/.ready  ## make the golden runs anew and print what changed
	$(BIN)/python tests/golden/record.py

lint: .venv/.ready  ## style and types, as CI checks them
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

format: .venv/.ready  ## mend the style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: export NO_MKDOCS_2_WARNING := 1
docs: .venv/.ready  ## the documentation, into site/; warnings are errors
	$(BIN)/mkdocs build --strict

docs-serve: export NO_MKDOCS_2_WARNING := 1
docs-serve: .venv/.ready  ## the documentation at http://127.0.0.1:8000, built anew when a page changes
	$(BIN)/mkdocs serve

benchmarks: .venv/.ready  ## every benchmark, quickly
	for script in random_bits foreign throughput memory learning estimators generalisation long_credit planner exchange scaling; do $(BIN)/python benchmarks/$$script.py --quick || exit 1; done

clean:  ## remove the environment and everything made; runs/ is kept
	rm -rf .venv .venv-lowest build site *.egg-info .pytest_cache .ruff_cache .hypothesis .coverage
