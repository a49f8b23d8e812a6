# Two commands on a fresh machine: `make demo` and `make test`. Everything is installed into .venv of this folder.

PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.PHONY: demo test bench fuzz kills reliability matrix picture docs docs-output clean

demo: .venv/installed-all  ## environment, install, and a model's whole life on real handwriting
	$(BIN)/onnuri run quickstart
	@echo "open runs/quickstart/report.html"

test: .venv/installed-dev  ## lint, types, import order, architecture, matrix, unit and integration tests, without network
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports
	OMP_NUM_THREADS=1 $(BIN)/python tests/offline.py --if-possible $(BIN)/python -m pytest -n 2 --dist loadgroup

WIDE := $(shell grep --files-with-matches --recursive --include='test_*.py' 'import.*\bsome\b' tests)

kills: .venv/installed-dev  ## kill -9 at 200 random moments of a model's life; how many fell into which step
	ONNURI_KILLS=200 OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/reliability/test_kills.py

reliability: kills  ## the kills; 40 sizes of a disk that is full, 1,000 changed bytes, 10 processes of one seed, and the rest
	ONNURI_DISKS=40 ONNURI_CHANGES=1000 ONNURI_REPEATS=10 ONNURI_ALL=1 OMP_NUM_THREADS=1 \
	  $(BIN)/python -m pytest tests/reliability $(WIDE) --ignore tests/reliability/test_kills.py

fuzz: .venv/installed-dev  ## INPUTS=100000 changed inputs for every reader, guided by coverage where atheris can be had
	-$(INSTALL) --editable '.[fuzz]'
	$(BIN)/python tests/fuzz/drive.py --inputs $(or $(INPUTS),100000)

bench: .venv/installed-dev  ## NAME=fit | families | distill | quantize | int4 | latency | clean | pretrain | transfer | generate | decode | merge | estimate | shrink | overhead; writes docs/benchmarks.md
	$(BIN)/python -m benchmarks $(NAME) $(if $(ONLY),--only "$(ONLY)") $(if $(REPEATS),--repeats $(REPEATS)) $(if $(KEPT),--kept "$(KEPT)")

matrix: .venv/installed-dev  ## every family under every operation; writes docs/matrix.md
	$(BIN)/onnuri matrix --out docs/matrix.md

picture: .venv/installed-all  ## the picture of the README, from the quickstart's own evidence
	$(BIN)/onnuri run quickstart
	$(BIN)/python docs/picture.py runs/quickstart docs/quickstart.svg

docs: .venv/installed-dev  ## the reference from the program itself, and the site into site/
	OMP_NUM_THREADS=1 $(BIN)/python docs/reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open site/index.html"

docs-output: .venv/installed-dev  ## run the documents and write the output of today into them
	OMP_NUM_THREADS=1 $(BIN)/python tests/pages.py docs/index.md docs/tutorial.md docs/howto/*.md

# torch first and alone, so that no other package brings another build of it
.venv/installed-%: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(INSTALL) torch
	$(INSTALL) --editable '.[$*]'
	touch $@

clean:
	rm -rf .venv runs site
