# Every command sets up what it needs: Python 3.11 or newer and make are enough to begin with.

PYTHON ?= python3
TF_PYTHON ?= $(or $(shell command -v python3.11),$(PYTHON))
JOBS ?= 2
PIP_INSTALL = -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help demo test faults test-slow test-network parity parity-env parity-tf-env parity-full savedmodel lint types format clean distclean

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: .venv/demo.stamp ## show what the package does, in about a minute
	@.venv/bin/python scripts/demo.py

test: .venv/dev.stamp ## the tests and the docstrings' examples
	@.venv/bin/pytest -n $(JOBS) --dist loadfile --doctest-modules tests resnetjax

faults: .venv/dev.stamp ## training killed, stopped and corrupted, weight files mutated, many times over
	@.venv/bin/pytest -m faults

test-slow: .venv/dev.stamp ## the tests that take minutes
	@.venv/bin/pytest -n $(JOBS) -m slow

test-network: .venv/dev.stamp ## the tests that download
	@.venv/bin/pytest -m network

parity: .venv-parity/parity.stamp .venv-parity-tf/parity.stamp ## compare with torchvision, timm, Transformers, Keras, slim and nets in Flax
	@.venv-parity/bin/pytest -n $(JOBS) tests/parity

parity-env: .venv-parity/parity.stamp ## only make the environment with PyTorch, for scripts/benchmark.py

parity-tf-env: .venv-parity-tf/parity.stamp ## only make the environment with TensorFlow, for tests/parity

parity-full: .venv-parity/parity.stamp .venv-parity-tf/parity.stamp ## the same with every net at full size; writes docs/parity.md
	@RESNETJAX_PARITY_TABLE=docs/parity.md .venv-parity/bin/pytest -n $(JOBS) tests/parity -m "not network"

savedmodel: .venv-savedmodel/savedmodel.stamp ## export to TensorFlow, and run that by TensorFlow
	@.venv-savedmodel/bin/pytest -m "slow or not slow" tests/infer/test_saved_model.py tests/test_docs.py -k "saved_model or tensorflow"

lint: .venv/dev.stamp ## ruff, its formatter, and the layers of imports
	@.venv/bin/ruff check
	@.venv/bin/ruff format --check
	@.venv/bin/lint-imports

types: .venv/dev.stamp ## pyright
	@.venv/bin/pyright

format: .venv/dev.stamp ## rewrite the code as `make lint` wants it
	@.venv/bin/ruff check --fix
	@.venv/bin/ruff format

clean: ## remove what was built or cached
	@rm -rf build dist *.egg-info .hypothesis .import_linter_cache .pytest_cache .ruff_cache
	@find . -name '.venv*' -prune -o -name __pycache__ -prune -exec rm -rf {} +

distclean: clean ## remove the environments as well
	@rm -rf .venv .venv-parity .venv-parity-tf .venv-savedmodel

# A stamp newer than pyproject.toml says that an installation ran to its end.
.venv/demo.stamp: pyproject.toml
	@echo "Setting up .venv for the demo: one to three minutes, about 1 GB of disk ..."
	$(call create,.venv)
	@.venv/bin/python $(PIP_INSTALL) -e ".[demo]"
	@touch $@

.venv/dev.stamp: pyproject.toml
	@echo "Setting up .venv for development: one to five minutes, about 2 GB of disk ..."
	$(call create,.venv)
	@.venv/bin/python $(PIP_INSTALL) -e ".[dev]"
	@touch $@ .venv/demo.stamp

# torch==2.13.0, spelled so, takes a CPU build (2.13.0+cpu) wherever pip is shown one. torchvision and timm
# come without their dependencies, which would choose another torch.
.venv-parity/parity.stamp: pyproject.toml Makefile
	@echo "Setting up .venv-parity with PyTorch: some minutes, 2 GB of disk, several more if pip takes a"
	@echo "CUDA build (set PIP_EXTRA_INDEX_URL to PyTorch's index of CPU builds to avoid that) ..."
	$(call create,.venv-parity)
	@.venv-parity/bin/python $(PIP_INSTALL) torch==2.13.0
	@.venv-parity/bin/python $(PIP_INSTALL) --no-deps torchvision==0.28.0 timm==1.0.31
	@.venv-parity/bin/python $(PIP_INSTALL) transformers==5.23.0 pyyaml huggingface_hub simplejpeg -e ".[test]"
	@.venv-parity/bin/python $(PIP_INSTALL) keras==3.15.1 h5py kagglehub
	@.venv-parity/bin/python $(PIP_INSTALL) --no-deps keras-hub==0.32.0 jax-resnet==0.0.4 flaxmodels==0.1.3
	@.venv-parity/bin/python $(PIP_INSTALL) regex requests tqdm
	@touch $@

.venv-savedmodel/savedmodel.stamp: pyproject.toml
	@echo "Setting up .venv-savedmodel with TensorFlow: some minutes, 2 GB of disk ..."
	$(call create,.venv-savedmodel)
	@.venv-savedmodel/bin/python $(PIP_INSTALL) -e ".[savedmodel,test]"
	@touch $@

# The last TensorFlow whose Keras is Keras 2, as KerasCV's ResNets and slim want it; its wheels are
# for Python 3.9 to 3.11. tf_keras comes without its dependency, a second TensorFlow with CUDA.
.venv-parity-tf/parity.stamp: Makefile
	@echo "Setting up .venv-parity-tf with TensorFlow: some minutes, 2 GB of disk ..."
	@$(TF_PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
		"TensorFlow 2.15 needs Python 3.11, this is " + sys.version.split()[0] + ": make TF_PYTHON=python3.11 ...")'
	@$(TF_PYTHON) -m venv .venv-parity-tf
	@.venv-parity-tf/bin/python $(PIP_INSTALL) tensorflow-cpu==2.15.1 numpy==1.26.4 protobuf==4.25.9 \
		h5py==3.16.0 tf-slim==1.1.0 keras-cv==0.9.0 keras-core==0.1.7 kagglehub==1.0.2 \
		tensorflow-datasets==4.9.10 tensorflow-metadata==1.15.0
	@.venv-parity-tf/bin/python $(PIP_INSTALL) --no-deps tf_keras==2.15.1
	@touch $@

define create
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and \
	"resnetjax needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
@$(PYTHON) -m venv $(1)
endef
