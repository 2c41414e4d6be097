# `make demo` and `make test` need nothing but make and Python 3.11 or later.
PYTHON ?= python3
VENV ?= .venv
PIP_ARGS ?=
THREADS ?= 2

BIN := $(VENV)/bin
READY := $(VENV)/.ready
EXTRAS := dev,joblib,sweep,sts,zoo

export OMP_NUM_THREADS := $(THREADS)
export MKL_NUM_THREADS := $(THREADS)
export OPENBLAS_NUM_THREADS := $(THREADS)
# Threads that wait do so asleep: spinning on cores that others use made small nets 10 to 20 times slower.
export OMP_WAIT_POLICY ?= PASSIVE
export WANDB_MODE ?= offline
export WANDB_ERROR_REPORTING := false

.PHONY: setup demo test lint format wheel clean

setup: $(READY)

# Compiling all that is installed took as long as installing it; what is imported is compiled then.
# The marker is newer than both files after a complete install, so that a second call costs nothing.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed. Got $$($(PYTHON) --version 2>&1). Try: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --no-compile $(PIP_ARGS) -c constraints.txt torch
	$(BIN)/python -m pip install --no-compile $(PIP_ARGS) -c constraints.txt -e ".[$(EXTRAS)]"
	@touch $@

demo: $(READY)
	$(BIN)/python -m experiments.run experiment=quickstart hydra.run.dir=outputs/demo
	@echo "Report: $(CURDIR)/outputs/demo/report.html"

# Files are dealt to worker processes of one thread each.
test: export OMP_NUM_THREADS := 1
test: export MKL_NUM_THREADS := 1
test: export OPENBLAS_NUM_THREADS := 1
# Where Python is told to keep no bytecode, every process that a test starts would compile torch and all else anew,
# which takes longer than what most of them do.
test: export PYTHONDONTWRITEBYTECODE :=
test: lint
	$(BIN)/python -m pytest -n $(THREADS) --dist loadfile --no-loadscope-reorder

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(READY)
	$(BIN)/python -m build --wheel

clean:
	rm -rf build dist *.egg-info outputs multirun
