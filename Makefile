# Small targets, each naming what it needs; every one works from a clean clone.
PYTHON ?= python3
BIN := .venv/bin
TRAIN := $(BIN)/python -m launch.train
REPLICAS := --strategy=mirrored --virtual_devices=2

# Marks the folder of a run before it begins, unless it is there already: `make clean` removes only what has the mark.
MARK = @test -e $(1) || { mkdir -p $(1) && touch $(1)/.made_by_make; }

.PHONY: help install finetune compare story-linear story-conv story-custom style-transfer configurables test test-all test-distributed test-restore test-parity test-resume check-tpu bench bench-scaling benchmark-restore docs lint typecheck format lock clean

help:            ## this list
	@awk 'match($$0, /^[a-z-]+:/) && (text = index($$0, "## ")) { \
		printf "%-18s %s\n", substr($$0, 1, RLENGTH - 1), substr($$0, text + 3) }' $(firstword $(MAKEFILE_LIST))

install: .venv/installed  ## .venv with the pinned versions of requirements.lock

.venv/installed: pyproject.toml requirements.lock
	@$(PYTHON) -c 'import sys; sys.exit(0 if (3, 10) <= sys.version_info[:2] <= (3, 13) else "regraft needs Python 3.10 to 3.13; here is " + sys.version.split()[0] + ". Name another: make PYTHON=python3.12")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@touch $@

finetune: runs/digits_source/final.weights.h5  ## the main job, from an Adam checkpoint to SGD + cosine, on two replicas
	$(call MARK,runs/digits_adam_to_sgd)
	$(TRAIN) --gin_file=configs/runs/digits_adam_to_sgd.gin --model_dir=runs/digits_adam_to_sgd $(REPLICAS)
	$(call MARK,runs/digits_from_scratch)
	$(TRAIN) --gin_file=configs/runs/digits_from_scratch.gin --model_dir=runs/digits_from_scratch $(REPLICAS)
	@$(BIN)/python -m launch.report --model_dir=runs/digits_adam_to_sgd --model_dir=runs/digits_from_scratch

compare: runs/digits_source/final.weights.h5  ## three optimizers, three seeds each, from one checkpoint, in a table and a picture
	$(call MARK,runs/compare_digits)
	$(BIN)/python -m launch.compare --gin_file=configs/runs/compare_digits.gin --model_dir=runs/compare_digits

story-linear: runs/linear_source/final.weights.h5  ## seed story 1, one linear unit from Adam to SGD
	$(call MARK,runs/linear_adam_to_sgd)
	$(TRAIN) --gin_file=configs/runs/linear_adam_to_sgd.gin --model_dir=runs/linear_adam_to_sgd

story-conv: runs/digits_source/final.weights.h5  ## seed story 2, a classifier from Adam to SGD + cosine
	$(call MARK,runs/conv_adam_to_sgd_cosine)
	$(TRAIN) --gin_file=configs/runs/conv_adam_to_sgd_cosine.gin --model_dir=runs/conv_adam_to_sgd_cosine

story-custom: runs/custom_step_source/final.weights.h5  ## seed story 3, a loss of the user's own, from Adam to RMSprop
	$(call MARK,runs/custom_step_adam_to_rmsprop)
	$(TRAIN) --gin_file=configs/runs/custom_step_adam_to_rmsprop.gin --model_dir=runs/custom_step_adam_to_rmsprop

style-transfer: runs/style_transfer_source/final.weights.h5  ## pictures from Adam to SGD, with VGG19's losses; minutes on two cores
	$(call MARK,runs/style_transfer_vgg19)
	$(TRAIN) --gin_file=configs/runs/style_transfer_vgg19.gin --model_dir=runs/style_transfer_vgg19
	@echo "Look at runs/style_transfer_source/images/contact_sheet.png and runs/style_transfer_vgg19/images/contact_sheet.png"

# A source run, by the name of its config; the file is there only once it has finished.
runs/%/final.weights.h5: .venv/installed
	$(call MARK,runs/$*)
	$(TRAIN) --gin_file=configs/runs/$*.gin --model_dir=runs/$*

configurables: install  ## everything that a config can bind, with defaults
	@$(BIN)/python -m launch.configurables

# File by file, in the order that tests/conftest.py gives: by number of tests, the slowest would come last and alone.
PYTEST := $(BIN)/python -m pytest
CORES := $(shell getconf _NPROCESSORS_ONLN)
BY_FILE := --maxprocesses=4 --dist=loadfile --no-loadscope-reorder

test: install  ## every promise once, in minutes; ends with what it cost as a multiple of `import trainer`
	$(BIN)/python tests/cpu_seconds.py $(PYTEST) --numprocesses=$(CORES) $(BY_FILE)

# One process more than there are cores: a third of the time of its tests is waiting for time limits.
test-all: .venv/schemas  ## all tests: every variation, failing workers, several hosts, Slurm
	$(BIN)/python tests/cpu_seconds.py $(PYTEST) --full --numprocesses=$$(($(CORES) + 1)) $(BY_FILE)

test-restore: install  ## the restore engine's tests, and the table of models by writers
	$(PYTEST) --full tests/restore --zoo-table

test-parity: install  ## every row on 2 and 3 replicas and 2 workers against one replica, as a table
	$(PYTEST) --full tests/parity --parity-table

test-resume: install  ## every fault for real, killed at 20 moments: what was done, how far it ended from an unbroken run
	$(PYTEST) --full tests/test_faults.py --fault-table

DISTRIBUTED := $(foreach name,cluster kubernetes tpu tpu_vm roll_call data_parts multi_worker local worker_failures hosts slurm,tests/test_$(name).py)

.venv/schemas: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev,schemas]'
	@touch $@

test-distributed: .venv/schemas  ## clusters, Slurm, several hosts and failing workers, for real, with the seconds of each
	$(PYTEST) --full --verbose --durations=40 --durations-min=1 $(DISTRIBUTED)

check-tpu: install  ## make check-tpu CONFIG=my.gin: compiles its step with XLA, fails for what a TPU would refuse
	TPU_NAME= $(TRAIN) --gin_file=$(CONFIG) --strategy=tpu --dry_run

benchmark-restore: install  ## 1 GB restored beside TensorFlow's own ways: ratios, memory
	$(BIN)/python tests/benchmarks/restore_speed.py
	$(BIN)/python tests/benchmarks/plan_speed.py

# Orbit's authors pin another TensorFlow: without its dependencies, in a folder that nothing else looks into.
.venv/orbit: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ tf-models-official==2.20.0

bench: .venv/orbit  ## speed beside the bare floor, Orbit and Keras fit; start-up and memory; the input pipeline; saving
	@failed=; PYTHONPATH=.venv/orbit $(BIN)/python tests/benchmarks/step_speed.py || failed=" step_speed"; \
	for script in start_up input_speed source_speed saving_speed; do \
		$(BIN)/python tests/benchmarks/$$script.py || failed="$$failed $$script"; \
	done; test -z "$$failed" || { echo "Bars that do not hold are named above, by:$$failed"; exit 1; }

bench-scaling: install  ## one and two processes on a core each; accumulation over a slow wire (as root: in network namespaces)
	$(BIN)/python tests/benchmarks/scaling.py

.venv/docs: .venv/installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint requirements.lock --editable '.[dev,docs]'
	@touch $@

docs: .venv/docs  ## the site of docs/ with its reference, into site/; a broken link is an error
	TF_CPP_MIN_LOG_LEVEL=3 $(BIN)/mkdocs build --strict --quiet

lint: install  ## ruff, lint and format
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

typecheck: install  ## mypy
	$(BIN)/mypy

format: install  ## lets ruff fix and format
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

lock: install  ## writes requirements.lock again, for all supported Python versions
	$(BIN)/python -m pip install --quiet uv && $(BIN)/uv pip compile pyproject.toml --extra dev --extra schemas --extra docs --universal --python-version 3.10 --no-header --no-annotate --output-file requirements.lock

clean:           ## removes the environment, caches and the runs that these targets made; never a run of yours
	rm -rf .venv site .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find configs launch tests trainer -name __pycache__ -prune -exec rm -rf {} +
	for mark in runs/*/.made_by_make; do rm -rf "$${mark%/.made_by_make}"; done
	rmdir runs 2>/dev/null || true
