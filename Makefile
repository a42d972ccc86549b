# Two commands for a newcomer: `make demo` and `make test`. Neither needs anything before it but git, make and Python 3.11.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
EXPERIMENTS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
export PATH := $(CURDIR)/$(BIN):$(PATH)
WORKERS ?= 2

.PHONY: demo test test-long test-slurm test-browser test-others coverage install-slurm install-chromium check bench bench-scale docs lock clean

demo: $(READY)
	manyscope run $(EXPERIMENTS)

test: $(READY)
	pytest -n $(WORKERS) --dist loadgroup -m "not long and not slurm and not browser" $(PYTEST)

# What takes minutes: chains killed in every stage, chains of some scopes and of plug-ins, trainings on several processes.
test-long: $(READY)
	pytest -n $(WORKERS) --dist loadgroup -m "long and not slurm and not browser" $(PYTEST) tests

# A SLURM cluster of its own on this machine; whoever is not root, or has no apt-get, sees the tests skipped.
test-slurm: $(READY) install-slurm
	pytest -m slurm $(PYTEST) tests/slurm

# The pages in Chromium, with a real mouse and keyboard; without Chromium the tests are skipped, or with
# MANYSCOPE_CHROMIUM_NEEDED=1 fail.
test-browser: $(READY) install-chromium
	pytest -m browser $(PYTEST) tests/browser

# The three before side by side: whoever waits for SLURM or for Chromium leaves the cores to the others.
test-others: $(READY) install-slurm install-chromium
	pytest -n $(WORKERS) --dist loadgroup -m "long or slurm or browser" $(PYTEST) tests

# The tests of `make test`, half as slow again: which lines they reach, and at least 85 % of them.
coverage: $(READY)
	$(MAKE) test PYTEST="--cov --cov-report=term:skip-covered $(PYTEST)"

install-slurm:
	which slurmctld slurmdbd munged mariadbd >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
	    apt-get install -y -qq --no-install-recommends slurm-wlm munge slurmdbd mariadb-server; }

install-chromium:
	which chromium >/dev/null || ! command -v apt-get >/dev/null || [ "$$(id -u)" != 0 ] || \
	    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; }

check: $(READY)
	ruff check .
	ruff format --check .
	mypy
	snakefmt --check Snakefile rules
	snakemake --lint
	manyscope schema --check --reference docs/settings.md

bench: $(READY)
	python -m benchmarks $(BENCH)

# A million objects: about half an hour and 4 GiB; SIZES="10000 100000" for less.
bench-scale: $(READY)
	python -m benchmarks.scale $(if $(SIZES),--sizes $(SIZES))

docs: $(READY)
	manyscope schema --reference docs/settings.md
	mkdocs build --quiet

# Pins every package for Python 3.11; the file holds versions only, no addresses.
lock: $(READY)
	uv pip compile --quiet --upgrade --python-version 3.11 --no-header --no-annotate --no-emit-index-url \
	    --no-emit-find-links --extra dev --extra cells --extra lance --extra onnx pyproject.toml --output-file requirements.lock

$(READY): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.lock)"
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --compile-bytecode -r requirements.lock
	VIRTUAL_ENV=$(CURDIR)/$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(READY)

clean:
	rm -rf $(VENV) .venv-hyrax build .snakemake .mypy_cache .pytest_cache .ruff_cache
