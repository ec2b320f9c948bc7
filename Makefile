# Everything a reader or a contributor runs. `make help` lists it.

# The model that notebooks run on. It ships with the package and needs no download;
# `make run IOI_MODEL=gpt2-small` runs the same notebooks on their subject.
IOI_MODEL ?= ioi-mini
export IOI_MODEL

# On Linux the package index holds PyTorch with CUDA, several GB. For the small CPU build name
# PyTorch's own index of CPU wheels ("Get Started" on pytorch.org tells it): make run TORCH_INDEX=...
TORCH_INDEX :=

# For a room without network: `make wheels` where there is one puts everything that the set-up needs
# into build/wheels, for the same system and Python; `make run WHEELS=folder` installs from there.
WHEELS :=
ifneq ($(WHEELS),)
export PIP_NO_INDEX := 1
export PIP_FIND_LINKS := $(abspath $(WHEELS))
endif

# The first Python from 3.11, the one tested, to 3.13 that can make virtual environments; or make
# PYTHON=...
PYTHON := $(shell for python in python3.11 python3.12 python3.13 python3 python; do \
	"$$python" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
	>/dev/null 2>&1 && { echo "$$python"; break; }; done)

# Tests run in this many processes, each with one thread of PyTorch and up to 4 GB of memory.
JOBS := 2

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
TOOLS := $(BIN)/python -m notebooks.tools
PYTEST := $(BIN)/python -m pytest

.PHONY: help run site lab test test-all check check-gpt2 address lint notebooks budgets editions collect train wheels clean
.DEFAULT_GOAL := help

help:  ## list these commands
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 20

run: $(READY)  ## execute every notebook and write pages to browse to build/ (NOTEBOOKS="01 02" for some)
	@$(TOOLS) run $(NOTEBOOKS)

site: $(READY)  ## build the course site from stored outputs, to build/site
	@$(TOOLS) site

# One thread of PyTorch for what ships, in every kernel: see execution.kernel_environment.
ifneq ($(filter ioi-mini% ioi-plain%,$(IOI_MODEL)),)
lab: export OMP_NUM_THREADS ?= 1
endif

lab: $(READY)  ## open the notebooks in JupyterLab (FOLDER=build/editions/student for others)
	$(BIN)/jupyter lab $(or $(FOLDER),notebooks)

# What tests say does not depend on a model that the reader has chosen.
test test-all: export IOI_MODEL := ioi-mini

test: lint  ## checks, unit tests, every notebook's outputs, every exercise (TESTS=... for some)
ifneq ($(TESTS),)
	$(PYTEST) $(TESTS)
else
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses $(JOBS) --dist loadgroup tests
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses $(JOBS) --dist loadfile notebooks
endif

test-all: lint  ## the same, and what is slow: other models, long statistics, the benchmarks' code
	OMP_NUM_THREADS=1 $(PYTEST) -m '' --hypothesis-profile=random --numprocesses $(JOBS) --dist loadgroup tests
	OMP_NUM_THREADS=1 $(PYTEST) --numprocesses $(JOBS) --dist loadfile notebooks

check: $(READY)  ## execute notebooks and compare with what is stored, storing nothing (NOTEBOOKS=04; DEVICE=cuda)
	@$(TOOLS) check $(NOTEBOOKS) $(if $(DEVICE),--device $(DEVICE))

check-gpt2: $(READY)  ## GPT-2 small against all that is published of it (WEIGHTS=folder; NAMES="05 paper")
	@$(TOOLS) check-gpt2 $(NAMES) $(if $(WEIGHTS),--weights $(WEIGHTS))

# `make address OWNER/NAME`: the second word is an argument and no target.
ifeq ($(firstword $(MAKECMDGOALS)),address)
ADDRESS := $(wordlist 2,2,$(MAKECMDGOALS))
$(if $(ADDRESS),$(eval $(ADDRESS):;@:))
endif

address: $(READY)  ## put the repository's public address everywhere (make address OWNER/NAME)
	@$(TOOLS) address $(ADDRESS)

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

notebooks: $(READY)  ## execute notebooks and store their outputs (NOTEBOOKS=04)
	@$(TOOLS) refresh $(NOTEBOOKS)

budgets: $(READY)  ## measure what notebooks cost to run, on a machine that does nothing else
	@$(TOOLS) budgets $(NOTEBOOKS)

# Both run bundled models in their own process: see execution.kernel_environment.
editions collect: export OMP_NUM_THREADS ?= 1

editions: $(READY)  ## make editions for students and teachers in build/editions (NOTEBOOKS=04)
	@$(TOOLS) editions $(NOTEBOOKS)

collect: $(READY)  ## check the answers that students handed in (FOLDER=...) and make a table
	@test -n "$(FOLDER)" || { echo "Name the folder with what was handed in: make collect FOLDER=..." >&2; exit 1; }
	@$(BIN)/python -m ioi_helpers.exercises collect "$(FOLDER)"

train: $(READY)  ## train a bundled model (MODEL=ioi-mini), or its sister (SEED=1, WITHOUT="exchange at S2")
	$(BIN)/python -m training.train $(MODEL) $(if $(SEED),--seed $(SEED)) $(if $(WITHOUT),--without "$(WITHOUT)") $(if $(DEVICE),--device $(DEVICE))

wheels:  ## download all that the set-up installs to build/wheels, for a room without network
	$(if $(TORCH_INDEX),$(PYTHON) -m pip download --no-deps --dest build/wheels --index-url $(TORCH_INDEX) -c constraints.txt torch)
	$(PYTHON) -m pip wheel --quiet --wheel-dir build/wheels --find-links build/wheels -c constraints.txt '.[dev]' pip 'setuptools>=77'

clean:  ## remove the virtual environment, built pages and caches
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

TORCH_SAID := $(if $(TORCH_INDEX)$(WHEELS),, (on Linux several GB, unless TORCH_INDEX names \
  PyTorch's index of CPU wheels: see the README))

# Made once, and again when what it is made from changes. A set-up that was interrupted is taken up
# again; where it was stopped before the environment had pip, the environment is made anew. What venv
# says is shown if it fails, and not its traceback where the reader stopped it.
$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "No Python 3.11, 3.12 or 3.13 with its venv module was found:" \
	  "install one, or name it with make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version), once: $(if $(WHEELS),from $(WHEELS),a download of 0.5 GB) and some minutes$(TORCH_SAID)."
	@trap 'exit 130' INT; $(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || said=$$($(PYTHON) -m venv --clear $(VENV) 2>&1) || { echo "$$said" >&2; exit 1; }
	@$(BIN)/python -m pip install --quiet --upgrade pip
ifneq ($(TORCH_INDEX),)
	@$(BIN)/python -m pip install --quiet --no-deps --index-url $(TORCH_INDEX) -c constraints.txt torch
endif
	@$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@
