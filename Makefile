# Two commands matter: `make demo` and `make test`. Each sets up what it needs; the second run is quick.
PYTHON ?= python3
VENV ?= .venv
# Installed before anything else, so that no dependency pulls another build of it.
TORCH ?= torch==2.13.0
BIN := $(VENV)/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: help setup serve demo test test-slow test-gpu test-robust test-interrupts test-memory package-test package-test-oldest lint format typecheck docs lab lab-full train-scenes scenes-scores clean

help:  ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/' | expand -t16

$(VENV)/.base: pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("flashu needs Python 3.10 or newer" if sys.version_info < (3, 10) else 0)'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

$(VENV)/.dev: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

$(VENV)/.serve: $(VENV)/.base
	$(BIN)/python -m pip install --quiet --editable '.[serve]'
	touch $@

setup: $(VENV)/.dev  ## virtual environment with everything the project needs

serve: $(VENV)/.serve  ## a page to draw on at http://127.0.0.1:8000, and the OpenAI-shaped API behind it
	$(BIN)/flashu serve --presets exact,quality,paper,fast,balanced

demo: $(VENV)/.base  ## draw and answer, vanilla and FlashU side by side; writes out/demo/report.html
	$(BIN)/flashu demo -o out/demo

test: $(VENV)/.dev lint typecheck  ## the whole suite, under 10 minutes on 2 cores
	$(BIN)/python -m pytest -m "not slow and not gpu"

test-slow: $(VENV)/.dev  ## what the suite's time does not allow
	$(BIN)/python -m pytest -m slow

test-gpu: $(VENV)/.dev  ## what needs a CUDA device
	$(BIN)/python -m pytest -m gpu

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## rewrite the code in the house format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

test-robust: $(VENV)/.dev  ## over 2,000 malformed checkpoints, pictures, requests, recipes, drafts and command lines
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness

test-interrupts: $(VENV)/.dev  ## long commands, interrupted at random moments and resumed: equal results
	$(BIN)/python -m tests.robustness.interrupts

test-memory: $(VENV)/.dev  ## memory of a process over 1,000 requests
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.robustness.memory

package-test:  ## the wheel, built and installed in a fresh environment with the newest dependencies
	PYTHON=$(PYTHON) TORCH="$(TORCH)" tests/package.sh newest

package-test-oldest:  ## the same with the oldest dependencies that pyproject.toml declares
	PYTHON=$(PYTHON) tests/package.sh oldest

typecheck: $(VENV)/.dev
	$(BIN)/mypy

docs: $(VENV)/.dev  ## the documentation as a site; writes site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

lab: $(VENV)/.dev  ## every table and figure of the paper on the embedded model, under 15 minutes; writes out/lab/report.html
	$(BIN)/flashu lab all -o out/lab

lab-full: $(VENV)/.dev  ## the same with all prompts and questions; takes hours, resumes where it stopped
	$(BIN)/flashu lab all --full -o out/lab-full

train-scenes: $(VENV)/.dev  ## train the embedded model anew (resumes; other models: see their pages in docs/models)
	$(BIN)/python -m flashu.training.scenes

scenes-scores: $(VENV)/.dev  ## write docs/MODEL-scores.md of every embedded model: their score tables
	for model in scenes scenes-hard scenes-bagel scenes-showo scenes-emu3; do \
		$(BIN)/python -m flashu.evaluation.scenes_report --model $$model || exit 1; done

clean:
	rm -rf $(VENV) build dist out .pytest_cache .ruff_cache .mypy_cache .hypothesis
