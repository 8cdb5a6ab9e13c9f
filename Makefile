# Each target sets up .venv first; that takes some minutes and 6 GB once, and nothing while it is up to date.
#
#   make demo         the whole of it on the synthetic city, into runs/demo
#   make test         the tests; make test-slow: the ones that take over a minute
#   make lint         ruff, its formatting, mypy
#   make bench        every program of benchmarks/; make bench-rerank: re-ranking against the plain way
#   make bench-gpu    all that needs a GPU, in 10 minutes, into runs/gpu/table.md; OUT=DIR: into that folder
#   make studies      the studies of configs/study and their plots in docs/studies.md: half an hour on two cores
#   make ablations    stage 1, places and re-ranking against training without them: an hour on two cores
#   make setup PYTHON=python3.12      with a Python of your choice, 3.11 or later

PYTHON ?= $(shell for p in python3.11 python3; do $$p -c $(NEW_ENOUGH) 2>/dev/null && echo $$p && break; done)
NEW_ENOUGH := 'import sys; sys.exit(sys.version_info < (3, 11))'
STAMP := .venv/.up-to-date
export PATH := $(CURDIR)/.venv/bin:$(PATH)

.PHONY: setup demo test test-slow lint bench bench-rerank bench-gpu studies ablations

setup: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(or $(PYTHON),false) -c $(NEW_ENOUGH) || { echo "error: no Python 3.11 or later here;" \
		"install one, or name it: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	$(PYTHON) -m venv .venv
	python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup
	python launchers/local.py demo

# One thread a process: tests start several processes, and a model this small gains nothing from more threads.
test test-slow: export OMP_NUM_THREADS ?= 1

# Two at a time, a file's tests in one process: what they wait for, start and compile is mostly on one core.
test: setup
	python -m pytest --numprocesses 2 --dist loadfile

test-slow: setup
	python -m pytest -m slow

lint: setup
	ruff check .
	ruff format --check .
	mypy

bench: setup
	@set -e; for program in $(filter-out benchmarks/ablations.py benchmarks/gpu_kit.py,$(shell grep -l __main__ benchmarks/*.py)); do \
		echo "$$program"; python $$program; done

bench-rerank: setup
	python benchmarks/rerank.py

bench-gpu: setup
	python benchmarks/gpu_kit.py $(if $(OUT),--out $(OUT))

PLOTS := strong/scaling weak/scaling zero/memory memory/memory compile/mfu strong/predicted sizes/loss

studies: setup
	pairvpr study configs/study/*.yaml
	$(foreach plot,$(PLOTS),cp runs/studies/$(dir $(plot))plots/$(notdir $(plot)).png \
		docs/images/study-$(subst /,-,$(plot)).png;)

ablations: setup
	python benchmarks/ablations.py
