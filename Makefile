# make demo       a real judge under several KV plans, from nothing to a report
# make app        the interactive app, on your runs, or else on one that comes with the repository
# make test       lint and the tests
# make test-slow  the tests that take minutes
# make bench      time and memory beside other ways to the same, up to 4096 tokens; benchmarks/results/
# make bench-full the same and larger cells: hours, and memory to match
# make figures    the figures and tables that rest on small judges, from runs it makes itself; RUNS="RUN ..." for others
# make docs       the documentation as a site, in site/; strict, without a network
# make audit      known vulnerabilities in the pinned packages; needs a vulnerability database, so a network
# make sbom       dist/sbom.json: what is installed, as CycloneDX
# make lint       ruff, the layers of the packages, and pyright alone
# make format     what ruff can mend by itself
# make clean      removes .venv, caches and build outputs; runs/ and prepared models stay
#
# Each target builds .venv by itself, once: `make clean` first to build it with another PYTHON or TORCH.
# What can be said on the command line:
#   PYTHON=python3.12             the interpreter that .venv is made with (3.11 or newer)
#   TORCH="torch==2.13.0"         the torch requirement; any build that satisfies pyproject.toml
#   TORCH_INDEX=URL               the package index that torch alone comes from, e.g. that of a CPU or a CUDA build
#   PYTEST_ARGS="-k engine"       more arguments for pytest; "-n 0": in one process

PYTHON ?= python3
TORCH ?= torch==2.13.0
TORCH_INDEX ?=
PYTEST_ARGS ?=
RUNS ?=

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.PHONY: demo app test test-slow bench bench-full figures docs audit sbom lint format clean

BIN := .venv/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check --no-input
USE := .venv/.installed
DEV := .venv/.installed-dev
DOCS := .venv/.installed-docs
BENCH := .venv/.installed-bench
AUDIT := .venv/.installed-audit

demo: $(USE)
	$(BIN)/kvattn demo

app: $(USE)
	$(BIN)/kvattn app $(if $(wildcard runs/*/manifest.json),runs,figures/runs/odd-one-out)

# A process for every core, each with one thread of torch; each begins with a run of neighbours, which share fixtures.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -q -m "not slow" -n logical --maxprocesses 8 --dist worksteal $(PYTEST_ARGS)

test-slow: $(DEV)
	$(PIP) install -c .venv/constraints.txt -e '.[ray]'
	$(BIN)/pytest -q -m slow $(PYTEST_ARGS)

bench: $(BENCH)
	$(BIN)/kvattn models prepare smollm2-135m
	$(BIN)/python -m benchmarks

bench-full: $(BENCH)
	$(BIN)/kvattn models prepare smollm2-135m
	$(BIN)/python -m benchmarks --full

figures: $(USE)
	$(BIN)/kvattn models prepare smollm2-135m
	$(BIN)/python -m analyses $(RUNS)

docs: $(DOCS)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# Strict, for without it packages that could not be looked up count as having no vulnerability.
audit: $(AUDIT)
	$(BIN)/pip-audit --strict --disable-pip --no-deps --progress-spinner off --requirement constraints.txt

sbom: $(AUDIT)
	mkdir -p dist
	$(BIN)/cyclonedx-py environment --output-format JSON --output-file dist/sbom.json $(BIN)/python

lint: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo --no-cache
	$(BIN)/pyright

format: $(DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv build dist site .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# TORCH takes the place of the pinned torch, so that another build does not contradict the constraints.
.venv/constraints.txt: constraints.txt Makefile
	@echo 'Setting up .venv; this takes a few minutes, once.'
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "kvattn needs Python 3.11 or newer; say which: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	{ echo '$(TORCH)'; grep -v '^torch==' constraints.txt; } > $@

$(USE): pyproject.toml .venv/constraints.txt
	$(if $(TORCH_INDEX),$(PIP) install --no-deps --index-url '$(TORCH_INDEX)' '$(TORCH)')
	$(PIP) install -c .venv/constraints.txt -e '.[app,export]'
	touch $@

$(DEV): $(USE)
	$(PIP) install -c .venv/constraints.txt -e '.[app,export,dev]'
	touch $@

$(BENCH): $(USE)
	$(PIP) install -c .venv/constraints.txt -e '.[app,export,bench]'
	touch $@

$(DOCS): $(USE)
	$(PIP) install -c .venv/constraints.txt -e '.[app,export,docs]'
	touch $@

$(AUDIT): $(USE)
	$(PIP) install -c .venv/constraints.txt -e '.[app,export,audit]'
	touch $@
