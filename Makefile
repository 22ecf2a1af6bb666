# Every target sets up what it needs; `make help` lists them.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help

help:  ## Show this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "randbp needs Python >= 3.11: make PYTHON=python3.11 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $(READY)

setup: $(READY)  ## Create .venv and install randbp with all extras from pinned constraints

demo: $(READY)  ## Presets beside exact backpropagation and its rivals, and four keep rates: tables and a page (3 minutes)
	$(BIN)/python -m experiments demo

test: $(READY)  ## Run the whole test suite
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

quick: $(READY)  ## Some tests of each part, in less than a minute on two cores: tests/quick.txt lists them
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal @tests/quick.txt

core:  ## Test the core with its two dependencies alone, torch and opt_einsum, in an environment of its own
	$(call in_new_environment,core)

oldest:  ## The same with the oldest supported PyTorch; PIP_EXTRA_INDEX_URL must name an index that has its CPU build
	$(call in_new_environment,oldest,/^torch==/d; /^setuptools==/d,$(OLDEST))

# The lower bound of pyproject.toml. `+cpu` takes a CPU build or fails; the plain version may be gigabytes of CUDA.
OLDEST ?= torch==2.11.0+cpu

# $(1): name of the environment; $(2): what sed changes in the constraints; $(3): what else is installed
define in_new_environment
	$(PYTHON) -m venv --clear $(VENV)-$(1)
	sed '$(2)' constraints.txt > $(VENV)-$(1)/constraints.txt
	$(VENV)-$(1)/bin/python -m pip install --quiet --disable-pip-version-check \
		--constraint $(VENV)-$(1)/constraints.txt --editable . pytest hypothesis $(3)
	$(VENV)-$(1)/bin/python -m pytest @tests/core.txt
endef

nightly: $(READY)  ## Long checks: 10,000 generated tensor networks, all of PyTorch's operator database (an hour)
	$(BIN)/python -m tests.tn.generated_networks --count 10000 --processes 2
	$(BIN)/python -m tests.lean.operators

peers: $(READY)  ## Compare curvature with curvlinops, BackPACK, singd, einconv and Opacus (2 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(call extra,peers)
	$(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal tests/curvature/against_*.py

# $(1): an extra whose lines are installed without what they ask for
extra = $(shell $(BIN)/python -c 'import tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["$(1)"])')

zoo: $(READY)  ## Run the recipes, and a step of 27 networks of timm, transformers, diffusers, MONAI and others (5 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(call extra,zoo)
	$(BIN)/python -m pytest tests/zoo/run_*.py

triton: $(READY)  ## Compile Triton's kernels for GPUs, and compare them in its interpreter; neither needs a GPU (2 minutes)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt '$(call extra,triton)'
	$(BIN)/python -m tests.kernels.cubins
	TRITON_INTERPRET=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal tests/kernels/test_same_bits.py -k triton

lint: $(READY)  ## Check formatting, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)  ## Format the code and apply safe lint fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY)  ## Benchmarks as interleaved ratios: tables here, JSON in runs/bench (about half an hour)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench

docs: $(READY)  ## Build the site of the documentation in build/site (a minute; no network)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[docs]'
	$(BIN)/python -m sphinx -W --keep-going -q -E -b html docs build/site

gallery: $(READY)  ## Draw all tensor networks into docs/gallery
	$(BIN)/python docs/gallery.py

clean:  ## Remove the virtual environment and caches (runs/ stays)
	rm -rf $(VENV) $(VENV)-core $(VENV)-oldest build docs/examples docs/sg_execution_times.rst .pytest_cache .hypothesis .mypy_cache .ruff_cache *.egg-info

.PHONY: help setup demo test quick core oldest nightly peers zoo triton bench docs gallery lint format clean
