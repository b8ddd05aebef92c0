# One word a task; hooks and CI call the same words.
# PYTHON is the interpreter that the environment is made with.

SECONDS ?= 60
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find src -type f)

.PHONY: help demo test test-core stress chaos fuzz lint format bench docs wheel clean
.DEFAULT_GOAL := help

help: ## Show these words
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

$(VENV)/.tools: pyproject.toml .ci/environment
	bash .ci/environment $(PYTHON) $(VENV) lint
	@touch $@

$(VENV)/.built: $(VENV)/.tools $(SOURCES)
	$(BIN)/maturin develop --release --quiet
	@touch $@

demo: $(VENV)/.built ## Set everything up, and watch a flash sale
	$(BIN)/seckill demo $(ARGS)

test: $(VENV)/.built ## Set everything up, and run all tests
	cargo test --quiet --no-default-features
	$(BIN)/python -m pytest -n 2 $(ARGS)

test-core: ## Run the core's tests with another interpreter: make test-core PYTHON=python3.13
	bash .ci/core $(PYTHON)

stress: $(VENV)/.built ## Run the long versions of the tests under faults (minutes)
	SECKILL_SEEDS=50000 cargo test --quiet --no-default-features promises
	SECKILL_STRESS=1 $(BIN)/python -m pytest -n 2 -m stress --timeout 1200 $(ARGS)

fuzz: ## Make up URLs and replies, SECONDS of each: what panics is kept in fuzz/artifacts
	cargo fuzz --version >/dev/null || cargo install --quiet cargo-fuzz
	for target in url reply; do \
		mkdir -p fuzz/target/corpus/$$target && \
		RUSTC_BOOTSTRAP=1 cargo fuzz run $$target fuzz/target/corpus/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(SECONDS) -max_len=2000 || exit 1; \
	done

chaos: SECONDS = 180
chaos: $(VENV)/.built ## Kill, stop and part servers and sellers in mid-sale: SECONDS=180 SECKILL_SEED=7
	PYTHONPATH=tests SECONDS=$(SECONDS) $(BIN)/python -m chaos $(ARGS)

lint: $(VENV)/.built ## Check format, style, types and stubs
	cargo fmt --check
	cargo check --quiet --no-default-features
	cargo clippy --quiet --all-targets --no-default-features -- -D warnings
	cargo clippy --quiet --all-targets -- -D warnings
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/python -m mypy.stubtest seckill._core

format: $(VENV)/.tools ## Format all code
	cargo fmt
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: $(VENV)/.built ## Measure against the old script, redis-py, GLIDE, coredis and redis-benchmark
	$(BIN)/python -m pip install --quiet --group bench
	$(BIN)/python -m benches $(ARGS)

docs: $(VENV)/.built ## Run every code block of the documentation
	$(BIN)/python -m pytest -q tests/test_docs.py

wheel: $(VENV)/.tools ## Build a wheel into dist/
	$(BIN)/maturin build --release --out dist

clean: ## Remove what was built
	cargo clean
	rm -rf $(VENV) .venvs dist
