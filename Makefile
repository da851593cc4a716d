# Two commands on a fresh machine: `make demo` and `make test`. Each does its own set-up into .venv.
# Needs python3 (3.11 or newer) with venv, and make. `make help` lists everything.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PYTEST_ARGS ?=
DEMO_ARGS ?=
BENCH_ARGS ?=
# Optional cameras, each with a comma before it: EXTRAS=,gige,gentl (gige needs Debian packages, see .ci/run)
EXTRAS ?=
SOAK_ARGS ?=
SCALE_ARGS ?=
FUZZ_SECONDS ?= 600
FUZZ_ARGS ?=
# Two workers take whole files in this order, so that neither has much to do when the other is done.
LONGEST_FIRST := tests/system tests/faults tests/contract tests/export tests/fuzz tests/unit

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test bench faults fuzz soak soak-cameras scale large lint format clean

help:  ## list the targets
	@sed -n 's/^\([a-z-]*\):[^#]*## */\1\t/p' $(MAKEFILE_LIST) | expand -t 16

install: $(VENV)/.installed  ## what a line PC needs, into .venv (no torch)

install-dev: $(VENV)/.installed-dev  ## the same, and what export and the tests need (torch for CPUs included)

demo: $(VENV)/.installed  ## two simulated stations, from good parts to verdicts, pictures in out/demo
	$(BIN)/python deploy/demo $(DEMO_ARGS)

test: lint  ## lint, types, import contracts and all tests
ifeq ($(PYTEST_ARGS),)
	$(BIN)/python -m pytest $(LONGEST_FIRST) -m "not alone" --numprocesses 2 --dist loadfile --no-loadscope-reorder
	$(BIN)/python -m pytest tests/system tests/faults -m alone
else
	$(BIN)/python -m pytest $(PYTEST_ARGS)
endif

bench: $(VENV)/.installed-dev  ## measure speed here, beside the naive ways: out/bench/bench.json and one page of plots
	$(BIN)/python -m tests.bench.suite $(BENCH_ARGS)

scale: $(VENV)/.installed-dev  ## a recipe of 10,000 pictures in 4 GB: out/scale/scale.json (an hour and more)
	$(BIN)/python -m tests.bench.scale $(SCALE_ARGS)

large: $(VENV)/.installed-dev  ## pictures of 8000x2000 pixels in tiles: built and judged in less than 2 GB (some minutes)
	$(BIN)/python -m tests.bench.large

faults: $(VENV)/.installed-dev  ## every fault: daemon killed 300 times, disks that fail, cameras that die (half an hour)
	EDGE_TEST_FAULTS=1 EDGE_TEST_UNPLUGS=50 EDGE_TEST_MINUTES=10 $(BIN)/python -m pytest tests/faults $(PYTEST_ARGS)

fuzz: $(VENV)/.installed-dev  ## ten minutes of nearly right inputs at every parser (FUZZ_SECONDS=N); findings in out/fuzz
	$(BIN)/python -m tests.fuzz --seconds $(FUZZ_SECONDS) $(FUZZ_ARGS)

soak: $(VENV)/.installed-dev  ## an hour under load: does anything grow (SOAK_ARGS="--minutes 60"); then 3,000 kills
	$(BIN)/python -m tests.bench.soak $(SOAK_ARGS)
	EDGE_TEST_KILLS=3000 EDGE_TEST_LANES=3 $(BIN)/python -m pytest tests/faults/test_kills.py --numprocesses 3
	@cat out/faults/kills-*-of-3.txt

soak-cameras: $(VENV)/.installed-dev  ## lose and find a camera a thousand times, then four of them for ten minutes (root)
	EDGE_SOAK_CYCLES=1000 $(BIN)/python -m pytest -q tests/contract/test_isolated.py -k reconnects
	EDGE_TEST_FAULTS=1 EDGE_TEST_UNPLUGS=1000 EDGE_TEST_MINUTES=10 $(BIN)/python -m pytest -q tests/faults -k "unplugging or four_cameras"

lint: $(VENV)/.installed-dev  ## ruff, mypy and the import contracts
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## let ruff rewrite the sources
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove what was built or produced here, .venv included
	rm -rf $(VENV) out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

# Stamps: a second run installs nothing unless the requirements changed. A stamp is written last, so
# that an interrupted installation is taken up again.
$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; say which with: make PYTHON=/path/to/python3")'
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created pyproject.toml constraints.txt
	@echo "Installing into $(VENV) (about 700 MB, half a minute)"
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	@echo "Installing what export and the tests need (torch for CPUs; a minute or two)"
	$(PIP) install --quiet --constraint constraints.txt --editable '.[gateway,export,dev$(EXTRAS)]'
	@touch $@
