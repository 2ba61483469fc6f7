# `make help` lists the targets. Everything is installed into .venv beside this file; a second call installs nothing.
.DEFAULT_GOAL := help
.PHONY: help demo demo-train shipped space test test-lowest test-newest test-slow test-gpu test-sim test-browser configs quality style clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := constraints.txt
PIP := $(BIN)/pip install --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS))
# One thread per process: two test processes on two cores would otherwise fight for them.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# Clients that serving is tested with. The first asks for NumPy below 2 and works with 2, the second for all that a
# harness needs.
ROBOT_CLIENTS := openpi-client==0.1.2 vla-eval==0.8.0
LIBERO := hf-libero==0.1.4 robosuite==1.4.0 bddl==1.0.1
# pytest's way to say that no test carries the mark.
NONE_IS_FINE := test $$? -eq 5
DEMO_ARGS ?=
TRAIN_ARGS ?=
TINY := runs/tiny-metaworld
SHIPPED := src/imagewam/shipped/imagewam-tiny-metaworld
CHECKPOINT ?=
# Threads wait awake for some microseconds, then sleep: the default burns cores that simulators need, and sleeping at
# once slows down training steps made of many small operations.
export GOMP_SPINCOUNT = 30000

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: $(VENV)/demo.stamp  ## the shipped policy in closed loop, on the CPU; prints where films and report are
	$(BIN)/imagewam demo $(DEMO_ARGS)

demo-train: $(VENV)/demo.stamp  ## that policy from nothing: episodes -> VAE, text encoder, policy -> success rates
	$(BIN)/imagewam train-tiny metaworld --output_dir $(TINY) $(TRAIN_ARGS)

shipped: $(VENV)/demo.stamp  ## demo-train with its defaults, and the result into the package
	$(BIN)/imagewam train-tiny metaworld --output_dir $(TINY)
	rm -rf $(SHIPPED).new
	cp -r $(TINY)/policy $(SHIPPED).new
	rm -rf $(SHIPPED)
	mv $(SHIPPED).new $(SHIPPED)

space: $(VENV)/space.stamp  ## the page that shows what a policy sees, on 127.0.0.1; CHECKPOINT=folder or repository
	CHECKPOINT="$(CHECKPOINT)" $(BIN)/python space/app.py

test: $(VENV)/test.stamp  ## all fast tests
	$(PYTEST) -n 2 --dist loadfile

test-lowest:  ## fast tests with the oldest versions that setup.cfg allows, in .venv-lowest
	$(MAKE) test VENV=.venv-lowest CONSTRAINTS=constraints-lowest.txt

test-newest:  ## fast tests with the newest versions that setup.cfg allows, in .venv-newest
	rm -rf .venv-newest
	$(MAKE) test VENV=.venv-newest CONSTRAINTS=

test-slow: $(VENV)/test.stamp  ## tests of more than half a minute
	$(PYTEST) -m slow || $(NONE_IS_FINE)

test-gpu: $(VENV)/test.stamp  ## tests that need a CUDA device
	$(PYTEST) -m gpu || $(NONE_IS_FINE)

test-sim: $(VENV)/test.stamp $(VENV)/libero.stamp  ## tests that step a physics simulator; LIBERO_ASSETS=folder for LIBERO's
	$(PYTEST) -m sim || $(NONE_IS_FINE)

test-browser: $(VENV)/test.stamp $(VENV)/browser.stamp  ## tests that drive a headless browser
	$(PYTEST) -m browser || $(NONE_IS_FINE)

configs: $(VENV)/test.stamp  ## write the configuration files in hub_configs/ anew
	$(BIN)/python -m imagewam.hub.variant_files hub_configs

quality: $(VENV)/quality.stamp  ## check style, change nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check

style: $(VENV)/quality.stamp  ## apply style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

clean:  ## remove the environments and the caches
	rm -rf $(VENV) .venv-lowest .venv-newest build dist .pytest_cache .ruff_cache

# torch goes first and alone, so that whatever build of the pinned version pip finds (CPU, CUDA) is kept by the rest.
$(VENV)/torch.stamp: $(CONSTRAINTS)
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) torch
	touch $@

# Without what LIBERO's packages ask for (a second torch, wandb, ...): the extra brings what they really import.
$(VENV)/libero.stamp: $(VENV)/torch.stamp setup.cfg pyproject.toml
	$(PIP) --no-deps $(LIBERO)
	$(PIP) --editable '.[libero]'
	touch $@

$(VENV)/test.stamp: $(VENV)/torch.stamp setup.cfg pyproject.toml
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps $(ROBOT_CLIENTS)
	touch $@

$(VENV)/%.stamp: $(VENV)/torch.stamp setup.cfg pyproject.toml
	$(PIP) --editable '.[$*]'
	touch $@
