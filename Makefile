# make demo   set up, start the platform and its page, ask a question about a picture, keep serving (Ctrl-C stops)
# make test   set up, then linters, types and every test
#
# Both work in a virtual environment of their own. PYTHON=python3.12 chooses the interpreter. On a machine without a GPU,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares the download of CUDA.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

.PHONY: demo test lint protos clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.serve
	$(BIN)/ferret demo

test: lint
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

protos: $(VENV)/.dev
	$(BIN)/python protos/generate.py

clean:
	rm -rf $(VENV)

# torch first and by its exact version: resolved together with the rest it may bring another build.
$(VENV)/.serve: pyproject.toml
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[serve,ui]"
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
