# Everything a developer does here. It needs make and Python 3.11 or newer; the rest goes into .venv.

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INTEROP_PEERS := $(patsubst %/package-lock.json,%/node_modules/.package-lock.json,$(wildcard tests/interop/node/*/package-lock.json))

# Tests mostly wait, for servers and processes, so more of them run than there are cores.
SIDE_BY_SIDE := -n 6 --dist loadfile

# The first Python that is new enough; say PYTHON=... to choose another.
PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.PHONY: help demo test check format interop soak bench package lock clean
.DEFAULT_GOAL := help

help: ## this list
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/make \1\t\2/p' Makefile | expand -t 16

demo: $(INSTALLED) ## a writer and a reader, two processes, over TCP
	@$(BIN)/python examples/demo.py

test: $(INSTALLED) ## the tests that need nothing but Python
	@$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not interop"

check: $(INSTALLED) ## what must hold before a change lands: style, types, floors, tests
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/lint-imports
	@$(BIN)/python -m pytest -q $(SIDE_BY_SIDE) -m "not interop"

format: $(INSTALLED) ## rewrite the code in the house style
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

interop: $(INSTALLED) $(INTEROP_PEERS) ## the tests against Node's hypercore 10 and 11; needs node and npm
	@$(BIN)/python -m pytest -q -m interop tests/interop

soak: $(INSTALLED) ## what chance decides, 20 times as often: kills (200 of each kind), schedules of writers, crossing dials
	@HYPERCORE_SOAK=20 $(BIN)/python -m pytest -q tests/crash tests/storage/s3/test_schedules.py \
		tests/storage/redis/test_schedules.py tests/replication/test_swarm_crossing.py

bench: $(INSTALLED) $(INTEROP_PEERS) ## us beside Node's hypercore 10 and 11, then every backend; BENCH="--quick" for a look
	@$(BIN)/python -m benchmarks $(BENCH)
	@$(BIN)/python -m benchmarks.backends $(if $(findstring --quick,$(BENCH)),--quick)

package: $(INSTALLED) ## the sdist and the wheel in dist/, and a fresh environment that runs the wheel
	@rm -rf dist build
	@$(BIN)/uv build --quiet --no-build-isolation --python $(BIN)/python
	@$(BIN)/uv venv --quiet --python $(BIN)/python build/fresh
	@$(BIN)/uv pip install --quiet --python build/fresh/bin/python dist/*.whl
	@cd build && fresh/bin/python -c 'import hypercore, hypercore_file, hypercore_tcp'
	@cd build && fresh/bin/hypercore plugins
	@ls dist

lock: $(INSTALLED) ## the newest versions that pyproject.toml allows, into requirements.lock
	@{ echo '# The exact versions and hashes that development and CI install; made by `make lock`, never by hand.'; \
	$(BIN)/uv pip compile pyproject.toml --upgrade --extra dev --universal --python-version 3.11 --generate-hashes \
		--no-annotate --no-header --quiet; } > requirements.lock.new
	@mv requirements.lock.new requirements.lock

clean: ## forget everything that was installed or built
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .import_linter_cache tests/interop/node/*/node_modules

$(INSTALLED): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "This needs Python 3.11 or newer, and found: $$(python3 --version 2>&1)." >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv." >&2; exit 1; }
	@echo "Installing into $(VENV) (once)..."
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(sed -n 's/^\(uv==[^ ]*\).*/\1/p' requirements.lock)"
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip sync --quiet --require-hashes --compile-bytecode requirements.lock
	@VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

tests/interop/node/%/node_modules/.package-lock.json: tests/interop/node/%/package-lock.json
	@command -v npm >/dev/null || { echo "This needs node and npm; on Debian: apt-get install nodejs npm." >&2; exit 1; }
	@echo "Installing Node's packages into $(@D) (once)..."
	@cd $(<D) && npm ci --silent --no-audit --no-fund
	@touch $@
