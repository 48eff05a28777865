# Every target makes its own environment in .venv; python3 (3.11 or newer) and make are all that has to be there.
# Another interpreter: make test PYTHON=python3.12

PYTHON ?= python3
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install -qq --disable-pip-version-check -c constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test lint bench notebooks docs site dist clean

help:
	@echo "make demo       BoRA's figures and a report on the built-in data, into demo/ (minutes, offline once it is installed)"
	@echo "make test       the tests"
	@echo "make lint       ruff, and mypy on an installed copy"
	@echo "make notebooks  run every notebook from the first cell to the last"
	@echo "make bench      measure, into benchmarks/results/"
	@echo "make docs       write docs/cli.md and the tables of README.md anew"
	@echo "make site       build the documentation site into build/site/html; a warning is an error"
	@echo "make dist       the release, as it could be published: sdist and wheel, checked"
	@echo "make clean      remove .venv, builds and caches; demo/ stays"

# The libraries of Hugging Face must not look for a network: everything that is needed is in the package.
demo test notebooks site: export HF_HUB_OFFLINE = 1
demo test notebooks site bench: export TOKENIZERS_PARALLELISM = false
# Small models, and two processes at a time: more threads would only wait for each other.
test notebooks site: export OMP_NUM_THREADS = 1

demo: .venv/train.stamp
	$(BIN)/deltaw reproduce bora --out demo

test: .venv/dev.stamp
	$(BIN)/python -m pytest -n 2 --dist worksteal

# Type checkers do not see an editable install of mapped folders, so mypy reads an installed copy.
lint: .venv/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	@rm -rf build
	$(BIN)/python -m pip install -qq --disable-pip-version-check --no-deps --target build/typecheck .
	@rm -rf build/lib build/bdist.*
	cd build/typecheck && MYPYPATH=. ../../$(BIN)/mypy --config-file ../../pyproject.toml \
		--namespace-packages --explicit-package-bases deltaw

notebooks: .venv/dev.stamp
	$(BIN)/python notebooks/run.py

bench: .venv/dev.stamp
	$(BIN)/python benchmarks/run.py

dist: .venv/release.stamp
	rm -rf dist
	$(BIN)/python -m build --outdir dist
	$(BIN)/twine check --strict dist/*

docs: .venv/dev.stamp
	$(BIN)/python docs/generate.py

site: .venv/dev.stamp
	$(BIN)/python docs/site/build.py

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is newer than what it was made from, so that a second call installs nothing.
.venv/pip.stamp: constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "deltaw: there is no '$(PYTHON)'; install Python 3.11 or newer" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "deltaw: needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1);" \
			"name another one, for example: make $(or $(firstword $(MAKECMDGOALS)),test) PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) pip
	@touch $@

.venv/train.stamp: .venv/pip.stamp pyproject.toml
	@echo "installing deltaw and what it trains with into .venv; minutes, the first time"
	$(PIP_INSTALL) --editable '.[train]'
	@touch $@

.venv/dev.stamp: .venv/pip.stamp pyproject.toml
	@echo "installing deltaw and what its checks need into .venv; minutes, the first time"
	$(PIP_INSTALL) --editable '.[dev]'
	@touch $@

.venv/release.stamp: .venv/dev.stamp
	$(PIP_INSTALL) --editable '.[release]'
	@touch $@
