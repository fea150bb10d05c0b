# Everything happens in .venv; `make demo` and `make test` need nothing but Python 3.11+ and make.
PYTHON ?= python3
BIN := .venv/bin
N ?= 10000
SEED ?= 0
INSTALLED := .venv/installed

.PHONY: demo test test-slow test-gpu fuzz bench docs lint clean

demo: $(INSTALLED)
	$(BIN)/python samples/digits/demo.py

# One thread to a process: two torch processes that each take all cores slow one another tenfold.
test: $(INSTALLED) lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist loadfile

# The report is opened in a browser where there is a Chromium.
test-slow: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group notebook --group docs --group browser
	$(BIN)/python -m pytest -m slow

# What runs with --device cuda, in miniature, against the processor; skipped where torch sees no GPU.
test-gpu: $(INSTALLED)
	$(BIN)/python -m pytest -m gpu

# Mutated models, data and arguments, each in a fork with limits; a fault is counted by its cause.
fuzz: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --seed $(SEED) --cases $(N) --results

bench: $(INSTALLED)
	$(BIN)/python -m pytest -m benchmark -s

# The pages in docs/, and those that are generated from commands, methods, targets and docstrings: build/docs/index.html.
docs: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs --quiet build --strict

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(INSTALLED): pyproject.toml constraints.txt
	test -d .venv || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[export,samples]" --group dev
	touch $@

clean:
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
