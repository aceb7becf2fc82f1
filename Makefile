# make demo        reinforcement learning on a shipped tiny checkpoint: TraceRL; DEMO=bgpo, igpo, unmask_policy: others;
#                  DEMO_ARGS="..." for the script
# make test        style, import floors and every test; PYTEST_ARGS="..." for pytest
# make lint        style and import floors alone
# make wheel-test  build the wheel, install it into a clean environment and use it there
# make docs        the documentation as a site, in site/; any warning is an error
# make venv        the environment in .venv that all of these use, with the versions in constraints.txt
# make clean       remove caches and build results; .venv and trained models stay

PYTHON ?= python3
DEMO ?= tracerl
DEMO_ARGS ?=
DEMO_THREADS ?= 2
PYTEST_ARGS ?=
# Test files that run side by side; each computes with one thread.
PYTEST_WORKERS ?= 2

BIN := .venv/bin
# Renewed when a dependency changes, so that a second call installs nothing.
INSTALLED := .venv/.installed

export HF_HUB_DISABLE_TELEMETRY := 1
export TOKENIZERS_PARALLELISM := false
test wheel-test: export HF_HUB_OFFLINE := 1

.PHONY: demo test lint wheel-test docs venv clean

# Every default of `accelerate launch` is given, so that it asks for no `accelerate config`.
# It uses a GPU where there is one.
demo: $(INSTALLED)
	$(BIN)/accelerate launch --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no \
		--num_cpu_threads_per_process $(DEMO_THREADS) examples/$(DEMO).py $(DEMO_ARGS)

# The wheel test is one of tests/.
test: lint
	$(BIN)/python -m pytest -n $(PYTEST_WORKERS) --dist loadfile $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

wheel-test: $(INSTALLED)
	$(BIN)/python -m pytest tests/test_wheel.py $(PYTEST_ARGS)

# The variable turns off an advertisement of the theme's authors.
docs: $(INSTALLED)
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

venv: $(INSTALLED)

# torch first and alone: where pip knows of a special build of that version (CPU only, say), it takes that one, and
# the second call finds it installed.
$(INSTALLED): pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -c constraints.txt torch
	$(BIN)/python -m pip install -c constraints.txt -e '.[test,docs,math,plots,rewriting]'
	touch $@

clean:
	rm -rf build dist site *.egg-info .pytest_cache .ruff_cache .import_linter_cache
	find . -path ./.venv -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
