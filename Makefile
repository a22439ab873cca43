# make chat | make test | make lint | make bench | make docs: each sets up what it needs, in .venv, and nothing twice.
PYTHON ?= python3
MODEL ?= smollm2-135m-instruct
PAGE ?= smollm2-135m-here
VENV := .venv
BIN := $(VENV)/bin
SOURCES := pyproject.toml sdk/edgelm/_version.py
DEV_EXTRAS := cpu,chat,serve,structured,parquet,sign,export,train,plot,docs,examples,dev
# Python compiles what is imported and keeps that: a third of what pip would compile.
PIP := pip install --quiet --no-compile
# The tests start hundreds of processes, each of which would compile edgelm anew.
unexport PYTHONDONTWRITEBYTECODE
# Files of tests go to one process more than there are cores (tests/conftest.py), long ones first: a file's tests share what they set up.
# Where a process is killed, the run ends: xdist begins another, and then waits for ever for the one that is gone.
# -rs: at its end it says what was skipped, and what that needs.
PYTEST := $(BIN)/python -m pytest -rs -n auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder --max-worker-restart 0

.PHONY: chat test test-offline test-gpu lint bench docs fuzz soak wheel lock locked clean

chat: $(VENV)/chat.stamp
	@$(BIN)/edgelm pull $(MODEL) >&2
	@$(BIN)/edgelm chat $(MODEL)

test: $(VENV)/dev.stamp
	$(PYTEST)

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(MAKE) -j 3 types-linux types-win32 types-darwin
	$(BIN)/lint-imports

# The types, as each system's Python has them. Each has a cache of its own, which another would empty. Those of other
# projects, which take longer than ours, are read for Linux alone.
types-win32 types-darwin: MYPY_FLAGS := --follow-imports skip --allow-subclassing-any --allow-untyped-decorators \
  --no-warn-unused-ignores --no-warn-return-any
types-%: $(VENV)/dev.stamp
	$(BIN)/mypy --platform $* --cache-dir .mypy_cache/$* $(MYPY_FLAGS)

# The same with no network but the loopback interface, on Linux; without the tests that fetch whole environments.
test-offline: $(VENV)/dev.stamp
	unshare -rn sh -c 'ip link set lo up && exec $(PYTEST) -m "not clients and not runtimes"'

# What needs an NVIDIA GPU, in an environment with the other build of ONNX Runtime. Without one everything is skipped.
test-gpu:
	$(PYTHON) -m venv .venv-gpu
	.venv-gpu/bin/$(PIP) -e ".[gpu,export,train]" pytest pytest-timeout transformers onnx-ir click
	.venv-gpu/bin/$(PIP) --no-deps onnxruntime-genai  # its builder alone: it would bring the build for CPUs
	.venv-gpu/bin/python -m pytest -m gpu tests/gpu

# Compiles llama.cpp once, which takes a C++ compiler and about three minutes. Writes docs/results/$(PAGE).md, .json and
# .svg: those of other machines stay as they are.
bench: $(VENV)/bench.stamp
	$(BIN)/python benchmarks/run.py --page $(PAGE)

# The documentation, as a folder of pages that needs no server: site/index.html. The search alone does, as browsers let
# no page on the disk read its index: .venv/bin/python -m http.server -d site
docs: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Long: a million mutants of some kinds of files, what fails is kept in tests/trust/regressions/; then kills and bit flips.
fuzz: $(VENV)/dev.stamp
	$(BIN)/python tests/fuzz/run.py
	EDGELM_BIT_FLIPS=10000 EDGELM_CRASH_POINTS=50 $(BIN)/python -m pytest --timeout 3600 tests/trust/test_damage.py tests/trust/test_crashes.py

# A million tokens through the server, for ten minutes or more; draws its memory as .cache/soak.svg.
soak: $(VENV)/dev.stamp
	@mkdir -p .cache
	$(BIN)/python tests/load/soak.py --plot .cache/soak.svg

# The same bytes whenever and wherever it is built, also from an archive without a history: hatchling gives all files in it
# one time, of its own or $SOURCE_DATE_EPOCH.
wheel: $(VENV)/bin/pip
	$(BIN)/pip wheel --quiet --no-deps --wheel-dir dist .

# The development tools in the versions and with the hashes of the lock; torch in any version that fits.
locked: $(VENV)/bin/pip
	$(BIN)/$(PIP) --no-deps --require-hashes -r .ci/lock.txt
	$(BIN)/$(PIP) -e ".[$(DEV_EXTRAS)]"
	@touch $(VENV)/dev.stamp $(VENV)/chat.stamp

# Writes that lock anew: the newest versions that pyproject.toml allows, for every system and Python. torch is left out,
# with what it alone needs: its wheel differs between builds for a processor and for each graphics card.
comma := ,
lock: $(VENV)/bin/pip
	$(BIN)/$(PIP) uv
	@mkdir -p .cache && echo torch > .cache/left-out.txt
	$(BIN)/uv pip compile pyproject.toml $(foreach extra,$(subst $(comma), ,$(DEV_EXTRAS)),--extra $(extra)) \
	  --universal --python-version 3.11 --excludes .cache/left-out.txt --generate-hashes --upgrade \
	  --no-annotate --no-header --quiet --output-file .ci/lock.txt

clean:
	rm -rf $(VENV) .cache site .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

$(VENV)/bin/pip:
	@$(PYTHON) -m venv $(VENV) >&2
	@$(BIN)/$(PIP) --upgrade pip >&2

# The development set holds all that the chat needs, so either stamp serves the other's purpose once dev is there.
$(VENV)/chat.stamp: $(VENV)/bin/pip $(SOURCES)
	@echo "Setting up edgelm in $(VENV) (once) ..." >&2
	@$(BIN)/$(PIP) -e ".[cpu,chat,export]" >&2
	@touch $@

$(VENV)/dev.stamp: $(VENV)/bin/pip $(SOURCES)
	$(BIN)/$(PIP) -e ".[$(DEV_EXTRAS)]"
	@touch $@ $(VENV)/chat.stamp

$(VENV)/bench.stamp: $(VENV)/bin/pip $(SOURCES)
	$(BIN)/$(PIP) -e ".[$(DEV_EXTRAS),bench]"
	@touch $@ $(VENV)/dev.stamp $(VENV)/chat.stamp
