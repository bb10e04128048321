# make demo   set up, start the platform and its page, ask a question about a picture, keep serving (Ctrl-C stops)
# make test   set up, then linters, types and every test
# make bench  measure what two cores can without a further environment, in some hours, on a machine with nothing else to do
# make audit  known holes in dependencies, and secrets in the repository
#
# All work in a virtual environment of their own. PYTHON=python3.12 chooses the interpreter. On a machine without a GPU,
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu spares the download of CUDA.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin

BENCHMARKS := $(wildcard $(patsubst %,benchmarks/%.py,engine region_sampler vision_tower training serving))

.PHONY: demo test bench lint leaks audit protos clean
.DEFAULT_GOAL := demo

demo: $(VENV)/.serve
	$(BIN)/ferret demo

test: lint leaks
	$(BIN)/python -m pytest

# One after the other; each writes its result to benchmarks/results.
bench: $(VENV)/.dev
	set -e; for script in $(BENCHMARKS); do $(BIN)/python $$script; done

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

# No key, password or token of ours in what git knows. High entropy alone says nothing here: tests are full of hashes.
leaks: $(VENV)/.dev
	git ls-files -z | xargs -0 $(BIN)/detect-secrets-hook --no-verify \
		--disable-plugin Base64HighEntropyString --disable-plugin HexHighEntropyString \
		--exclude-lines 'secretName:'
	! git grep -nE 'ferret_[A-Za-z0-9_-]{43}'

# Known holes in what is installed here: asks PyPI, so it needs a network.
audit: leaks
	$(BIN)/pip-audit --skip-editable --progress-spinner off

protos: $(VENV)/.dev
	$(BIN)/python protos/generate.py

clean:
	rm -rf $(VENV)

# torch first and by its exact version: resolved together with the rest it may bring another build.
$(VENV)/.serve: pyproject.toml $(wildcard ferret_core/cpu/*.cpp ferret_core/cpu/*.h)
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet "$(TORCH)"
	$(BIN)/pip install --quiet --editable ".[serve,ui]"
	touch $@

$(VENV)/.dev: $(VENV)/.serve
	$(BIN)/pip install --quiet --editable ".[dev]"
	touch $@
