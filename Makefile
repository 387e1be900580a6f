# Every target sets up .venv by itself and may be run again at no cost.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# The CPU build where the index has it; a CUDA machine installs its own torch into .venv first and this is satisfied.
TORCH  ?= torch==2.13.0

# bfloat16 where the processor computes in it (twice as fast), else float32
PRECISION := $(shell grep -qsE 'bf16' /proc/cpuinfo || echo precision=32-true)

.PHONY: setup demo test test-fast test-strategies equivalence reshard overhead interruptions faults lint clean

setup: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch $@

demo: setup
	$(BIN)/athanor pipeline experiment=pipelines/demo $(PRECISION)

# Processes that run tests, each on one thread
WORKERS ?= 2
PYTEST  := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

test: setup
	$(PYTEST) -m "not strategies"

test-fast: setup
	$(PYTEST) -m "not slow"

test-strategies: setup
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m strategies

interruptions: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/interruptions.py

equivalence: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/equivalence.py

reshard: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/reshard.py

overhead: setup
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/overhead.py

# Random faults, which the same seed draws again
N    ?= 200
SEED ?= 1
faults: setup
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/faults.py --count $(N) --seed $(SEED)

lint: setup
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/mypy

clean:
	rm -rf $(VENV) runs .mypy_cache .ruff_cache .pytest_cache
