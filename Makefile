# make help lists what can be made. Each target first makes sure that .venv is ready.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORLD ?= car_racing
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help setup play test check lint fast format gpu dist demo record train constraints clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1\t\2/' | expand -t 22

setup: ## create .venv with everything for playing, training and testing
	@$(PYTHON) scripts/setup.py --venv $(VENV) --extras envs,dev

# Playing needs neither test tools nor linters: a third less to install.
.PHONY: setup-play
setup-play:
	@$(PYTHON) scripts/setup.py --venv $(VENV) --extras envs

play: setup-play ## play the shipped worlds in the browser; ARGS="--port 9000" goes on to worldgen play
	@$(BIN)/worldgen play $(ARGS)

# Pages are driven by one browser at a time, with the machine to themselves. Status 5: no test chosen.
test: setup ## run every test, slow ones and the browser included
	@OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
		$(BIN)/python -m pytest -n 2 --dist loadfile -m "not browser" $(ARGS) || test $$? -eq 5
	@$(BIN)/python -m pytest -m browser $(ARGS) || test $$? -eq 5

check: lint fast ## ruff, mypy, import contracts and the fast tests: before each commit

lint: setup ## ruff, mypy and import contracts
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

fast: setup ## run the fast tests
	@$(BIN)/python -m pytest -q -m "not slow and not browser and not gpu" $(ARGS)

format: setup ## let ruff format and fix what it can
	@$(BIN)/ruff check --fix-only --quiet .
	@$(BIN)/ruff format .

gpu: setup ## run the tests that need a CUDA device
	@# Status 5: no such test yet.
	@$(BIN)/python -m pytest -m gpu $(ARGS) || test $$? -eq 5

dist: setup ## build the source archive and the wheel into dist/
	@$(BIN)/python -m build --no-isolation --outdir dist .

demo: setup ## draw the dream beside the simulator into outputs/
	@$(BIN)/python -m demos.dream_beside_simulator $(ARGS)

record: setup ## record WORLD (car_racing) into recordings/
	@$(BIN)/python -m envs.record env=$(WORLD) $(ARGS)

train: setup ## train both models of WORLD (car_racing) on its recordings
	@$(BIN)/python -m train.visual_tokenizer experiment=$(WORLD)
	@$(BIN)/python -m train.world_model experiment=$(WORLD)

constraints: setup ## pin in constraints.txt what is installed now
	@$(BIN)/python scripts/constraints.py

clean: ## remove build results and caches, never .venv, recordings or runs
	@rm -rf build dist .mypy_cache .pytest_cache .ruff_cache
