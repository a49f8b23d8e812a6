# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv of this folder.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test matrix picture clean

demo: .venv/installed-all  ## environment, install, and a model's whole life on real handwriting
	$(BIN)/onnuri run quickstart
	@echo "open runs/quickstart/report.html"

test: .venv/installed-dev  ## lint, types, import order, architecture, matrix, unit and integration tests, without network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python tests/offline.py --if-possible $(BIN)/python -m pytest -n 2 --dist loadgroup

matrix: .venv/installed-dev  ## every family under every operation; writes docs/matrix.md
	$(BIN)/onnuri matrix --out docs/matrix.md

picture: .venv/installed-all  ## the picture of the README, from the quickstart's own evidence
	$(BIN)/onnuri run quickstart
	$(BIN)/python docs/picture.py runs/quickstart docs/quickstart.svg

# torch first and alone, so that no other package brings another build of it
.venv/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv runs
