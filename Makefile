# Two commands set everything up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
PIP = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo install test test-slow lint gpu-check clean

demo: install
	$(BIN)/vmapens demo --out runs/demo --overwrite

install: $(VENV)/installed
test: $(VENV)/installed-test
	$(BIN)/python -m pytest -q -m "not slow" --numprocesses 2 --dist loadfile
# Among them ten minutes of training in blocks, and a cohort that takes 7 GB of memory.
test-slow: $(VENV)/installed-test
	$(BIN)/python -m pytest -q -m slow
lint: $(VENV)/installed-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)
# torch first and by itself: its pinned build decides what else is needed.
$(VENV)/installed: $(BIN)/python pyproject.toml constraints.txt
	$(PIP) torch
	$(PIP) --editable '.[cpu]'
	touch $@
$(VENV)/installed-test: $(VENV)/installed
	$(PIP) --editable '.[cpu,test]'
	touch $@
$(VENV)/installed-lint: $(VENV)/installed
	$(PIP) --editable '.[cpu,lint]'
	touch $@

# On a machine with a GPU as it is: torch and Triton, no network, so no environment of its own.
gpu-check:
	$(PYTHON) -m benchmarks.gpu_check --out $(or $(OUT),runs/gpu-check)

clean:
	rm -rf runs .pytest_cache .mypy_cache .ruff_cache
