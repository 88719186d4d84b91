# The doors of this repository. `make demo` and `make test` each do all the set-up they need.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow fuzz check lint types layers docs proto bench bench-autoscaling bench-rollouts bench-compression bench-finetune bench-predictions bench-faults soak bench-serving bench-training clean

help:  ## Show this list
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

.venv/made:
	$(PYTHON) -c 'import sys; sys.exit("Argosy needs Python 3.11 or newer; this is " + sys.version.split()[0]) if sys.version_info < (3, 11) else 0'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1'
	@touch $@

.venv/demo: .venv/made pyproject.toml constraints.txt
	@echo "installing Argosy with its training extra (about 1 GB, once) ..."
	$(PIP) --editable '.[train,explain]' 'scikit-learn>=1.5'
	@touch $@

.venv/dev: .venv/made pyproject.toml constraints.txt
	@echo "installing Argosy, its extras and the test tools (once) ..."
	$(PIP) --editable '.[train,explain,ui,text,image,hf,openvino,otel]' --group dev
	@touch $@ .venv/demo

demo: .venv/demo  ## The whole life of a model: data to a rolled-back canary, on real digits
	$(BIN)/python examples/digits/demo.py

test: .venv/dev  ## Run the tests (slow ones excepted)
	$(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile --max-worker-restart 0

test-slow: .venv/dev  ## Run every test, the slow ones too
	$(BIN)/python -m pytest -m 'slow or not slow' --timeout 1800

fuzz: .venv/dev  ## Send the gateway's parsers what nobody expects, for FUZZ_SECONDS (60)
	$(BIN)/python -m pytest tests/property/test_serving_fuzz.py -m slow -s

lint: .venv/dev
	$(BIN)/ruff format --check
	$(BIN)/ruff check

types: .venv/dev
	$(BIN)/mypy

layers: .venv/dev
	$(BIN)/lint-imports

docs: .venv/dev  ## Build the manual strictly into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

proto: .venv/dev  ## Compile the gRPC messages of serve/rpc/inference.proto
	$(BIN)/python -m grpc_tools.protoc -I src/argosy/serve/rpc --descriptor_set_out src/argosy/serve/rpc/inference.binpb inference.proto

check: lint types layers test docs  ## What CI runs

bench: bench-rollouts bench-serving bench-training bench-faults  ## Run every benchmark and write benchmarks/results/

bench-autoscaling: .venv/dev  ## The autoscaler beside a rule on average use, on simulated traffic (twenty minutes)
	$(BIN)/python benchmarks/autoscaling.py

bench-rollouts: .venv/dev  ## False alarms and detection of the judge, simulated
	$(BIN)/python benchmarks/rollouts.py

bench-predictions: .venv/dev  ## Do predictions of trainings hold? Three models, one process and two (five minutes)
	$(BIN)/python benchmarks/predictions.py

bench-faults: .venv/dev  ## What callers notice of kills, version changes, overload and hostile clients (20 minutes)
	$(BIN)/python benchmarks/faults.py

bench-compression: .venv/dev  ## Argosy's compression search and other tools on the same models (several hours)
	$(BIN)/python benchmarks/compression.py $(COMPRESSION)

bench-finetune: .venv/dev  ## A pretrained encoder on real texts: all weights, LoRA, frozen features (a quarter of an hour)
	$(BIN)/python benchmarks/finetune.py

soak: .venv/dev  ## Five minutes of kills and version changes: memory, descriptors and threads stay flat
	$(BIN)/python benchmarks/faults.py --only soak

bench-serving: .venv/dev  ## Argosy, six other servers and the bare runtime, side by side (three quarters of an hour)
	$(BIN)/python benchmarks/serving.py $(SERVING)

bench-training: .venv/dev  ## Argosy, other trainers and ranks that exchange nothing, side by side (80 minutes; its network part needs root)
	$(BIN)/python benchmarks/training.py $(TRAINING)

clean:  ## Remove the environment and everything that was built
	rm -rf .venv .bench site .demo .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
