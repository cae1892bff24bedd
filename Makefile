# Each target does its whole set-up in .venv, and is quick when the set-up is there already.
# Everything can be overridden: make test PYTHON=python3.12 ARGS="-m 'not slow'"

PYTHON ?= python3
VENV ?= .venv
# arguments for pip, e.g. an index with torch wheels that bring no CUDA along
PIP_ARGS ?=
# arguments for pytest, the demo, sphinx or ruff, whichever target runs
ARGS ?=

# Half of the logical cores, at least one: the matrices are small, and threads that wait for a busy core cost more than they give.
CORES := $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
OMP_NUM_THREADS ?= $(shell n=$$(( $(CORES) / 2 )); [ $$n -gt 1 ] && echo $$(( n < 8 ? n : 8 )) || echo 1)
# figures are written to files, never to a window
MPLBACKEND ?= Agg
export OMP_NUM_THREADS MPLBACKEND

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help setup demo test lint docs clean

help:
	@echo "make setup   install the package and what its development needs into $(VENV)"
	@echo "make demo    train SCCVAE and the baselines on the embedded real example; table, figures, report"
	@echo "make test    run the tests"
	@echo "make lint    check style and formatting"
	@echo "make docs    build the documentation, warnings are errors"
	@echo "make clean   remove what the other targets wrote, and $(VENV)"

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"Python 3.11 or newer is needed, {sys.executable} is {v[0]}.{v[1]}; try: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install $(PIP_ARGS) --progress-bar off --constraint constraints.txt --editable . --group dev
	@touch $@

demo: $(STAMP)
	$(BIN)/scvi-causal demo $(ARGS)

test: $(STAMP)
	$(BIN)/python -m pytest $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check $(ARGS) .
	$(BIN)/ruff format --check .

docs: $(STAMP)
	$(BIN)/python -m sphinx -W --keep-going -b html $(ARGS) docs docs/_build/html
	@echo "open docs/_build/html/index.html"

clean:
	rm -rf $(VENV) build dist docs/_build docs/api/generated .pytest_cache .ruff_cache scvi_causal_demo
