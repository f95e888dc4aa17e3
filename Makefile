# make demo, make test: complete on a fresh machine with Python 3.11+ and a C++ compiler.
#
#   PYTHON=python3.12   the interpreter the virtual environment is made from
#   TORCH=torch==2.13.0 what pip installs where the environment has no torch yet
#   MSA_OPS_NO_CUDA, MSA_OPS_FORCE_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS: see setup.py

PYTHON ?= python3
TORCH ?= torch==2.13.0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
CUDA_SOURCES := $(shell find csrc -name '*.cu')

.PHONY: demo test lint format cuda-check bench gpu clean help

help:
	@echo "make demo    inpaint with the weights that come along, time the network, write out/*.png"
	@echo "make test    the test suite"
	@echo "make lint    ruff and clang-format; make format applies them"
	@echo "make bench   CPU benchmarks, and the README's tables and plots from them"
	@echo "make gpu     everything that needs a GPU: build, tests, sanitizer, benchmarks (no venv, no network);"
	@echo "             PART=targets: only what the targets need; attention, table5, … (python -m benchmarks.gpu --help)"
	@echo "make cuda-check   compile every .cu for sm_80 and sm_90a and read the resource report"

# The CUDA part is of no use beside a torch without CUDA, so this environment leaves it out; wheels hold it.
$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; set PYTHON=")'
	@command -v $${CXX:-c++} >/dev/null || { echo "a C++ compiler is needed; install one or set CXX="; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet 'setuptools>=77' wheel ninja 'pybind11>=2.12' numpy
	if $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' && [ "$$MSA_OPS_FORCE_CUDA" != 1 ]; \
	then export MSA_OPS_NO_CUDA=1; fi; \
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[model,test,bench,demo]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m msa_model.demo --out out

test: $(VENV)/.installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

$(VENV)/.linters: pyproject.toml $(VENV)/.installed
	$(BIN)/python -m pip install --quiet ruff==0.17.6 clang-format==23.1.5
	touch $@

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -type f)

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -type f)

cuda-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.cuda_resources $(CUDA_SOURCES)

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.operators
	$(BIN)/python -m benchmarks.operators --suite layers --compiled --name compiled
	$(BIN)/python -m benchmarks.operators --suite generator --batch 1 --compiled --name inference
	$(BIN)/python -m benchmarks.table5 --quick
	$(BIN)/python -m benchmarks.loader --save
	$(BIN)/python -m benchmarks.demo_weights
	$(BIN)/python -m benchmarks.report

gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(PART),--part $(PART))

clean:
	rm -rf build dist out *.egg-info msa_ops/*.so .pytest_cache .ruff_cache .hypothesis $(VENV)/.installed
