# The two commands: `make demo` and `make test`. Both set everything up first.
SHELL := /bin/bash
PY := .venv/bin/python
PACKAGES := hal policies episodes protos runtime policy_server learner tools

.PHONY: help setup demo test check stubs format clean

help:
	@echo "make demo    set up everything and show the whole loop on the simulated bench (about 10 minutes)"
	@echo "make test    set up everything, run the checks and the tests"
	@echo "make setup   only set up (.venv, system libraries)"
	@echo "make check   ruff, mypy --strict, import rules, stubs in step"
	@echo "make stubs   regenerate the gRPC stubs from protos/"

setup:
	@bash tools/bootstrap.sh

demo: setup
	@.venv/bin/ratchet demo $(ARGS)

test: setup check
	@PY=$(PY) bash tools/run_tests.sh $(ARGS)

check: setup
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) tools/generate_stubs.py --check
	@.venv/bin/lint-imports --no-cache
	@$(PY) -m mypy

stubs: setup
	@$(PY) tools/generate_stubs.py

format: setup
	@$(PY) -m ruff format .
	@$(PY) -m ruff check --fix .

clean:
	rm -rf .venv out build *.egg-info .mypy_cache .ruff_cache
