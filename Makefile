# Every target sets up what it needs; CI runs the same lines.
PYTHON ?= python3
BIN := .venv/bin
SOURCES := cli/likewise server/likewise shards/likewise export/likewise clients/python/likewise

.PHONY: install demo test faults check proto model bench build

install: .venv/.installed

.venv/.installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[all]' --group dev
	touch $@

demo: install
	$(BIN)/likewise demo

check: install
	$(BIN)/ruff format --check . && $(BIN)/ruff check .
	$(BIN)/mypy $(SOURCES) tests benchmarks
	$(BIN)/lint-imports

# Two files at a time: most of the minutes are waits for processes that start. In their order, so that no long file comes
# last and alone.
test: check
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder

# The long form of tests/faults: 200,000 operations. tests/faults/options.py has its variables.
faults: install
	FAULTS=long FAULTS_REPORT=$${FAULTS_REPORT:-faults-report.json} $(BIN)/pytest tests/faults

proto: install
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python protos/generate.py clients/python

model: install
	$(BIN)/python -m likewise.export.shapes.make

bench: install
	$(BIN)/likewise bench goals $(if $(wildcard peers-out/results.jsonl),--lines peers-out/results.jsonl)

build: install
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
