# `make demo` and `make test` need only Linux, Python 3.11 or later and a C++ compiler.
#
#   PYTHON=python3.12   the interpreter that the virtual environment is made from
#   TORCH=torch==2.13.0 what pip installs where the environment has no torch yet
#   WORKERS=2           processes that run the tests, one thread each
#   PYTEST_ARGS=…       further arguments for pytest
#   MSA_OPS_NO_CUDA, MSA_OPS_FORCE_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS: see setup.py

PYTHON ?= python3
TORCH ?= torch==2.13.0
WORKERS ?= $(shell nproc 2>/dev/null | awk '{print ($$1 > 8) ? 8 : $$1}')
VENV := .venv
BIN := $(VENV)/bin
SOURCES := $(shell find csrc -type f) setup.py pyproject.toml
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

.PHONY: demo test test-portable attack sanitize sanitize-threads lint format docs cuda-check wheel versions bench gpu \
  clean help

help:
	@echo "make demo           fill holes with the weights that come along, time the network, write out/*.png"
	@echo "make test           run the tests"
	@echo "make test-portable  run the operator tests as a processor without AVX would"
	@echo "make attack         random cases against every part, SECONDS=60 each; make -j2 attack runs two at once"
	@echo "make sanitize       run the operator attack and tests with address and undefined-behaviour sanitizers"
	@echo "make sanitize-threads  call the operators from several threads with the thread sanitizer"
	@echo "make lint           ruff, clang-format and mypy; make format applies the first two"
	@echo "make docs           build the documentation into site/, with warnings as errors"
	@echo "make bench          run the CPU benchmarks and write the measurements' pages from them"
	@echo "make gpu            everything that needs a GPU: build, tests, sanitizer, benchmarks (no venv, no network);"
	@echo "                    PART=tests,targets: only these parts; all: python -m benchmarks.gpu --help"
	@echo "make cuda-check     compile the CUDA kernels and read how many registers they use and spill"
	@echo "make wheel          build dist/*.whl, with CUDA where nvcc is found, for every Linux that torch's wheels serve"
	@echo "make versions       test that wheel under other versions of Python and torch (hours, and 3 GB for each torch);"
	@echo "                    PAIRS='3.12/2.13 3.13/2.14': only these"

# The CUDA part is of no use beside a torch without CUDA, so this environment leaves it out; wheels hold it.
$(VENV)/.installed: $(SOURCES)
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or later is needed; set PYTHON=")'
	@command -v $${CXX:-c++} >/dev/null || { echo "a C++ compiler is needed; install one or set CXX="; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --quiet '$(TORCH)'
	$(BIN)/python -m pip install --quiet 'setuptools>=77' wheel ninja numpy
	if $(BIN)/python -c 'import sys, torch; sys.exit(torch.version.cuda is not None)' && [ "$$MSA_OPS_FORCE_CUDA" != 1 ]; \
	then export MSA_OPS_NO_CUDA=1; fi; \
	$(BIN)/python -m pip install --quiet --no-build-isolation -e '.[model,test,bench,demo]'
	touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m msa_model demo --out out

test: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(PYTEST) $(PYTEST_ARGS)

# The kernels without their AVX clones, and torch's own kernels and oneDNN restricted in the same way. Triton's tests are
# left out: its interpreter computes with numpy, and what it compiles is for GPUs, so neither sees these switches. So are
# tests of what does not depend on the processor.
PORTABLE := build/portable
$(PORTABLE)/.built: $(VENV)/.installed
	MSA_OPS_NO_CUDA=1 MSA_OPS_PORTABLE=1 $(BIN)/python setup.py --quiet build_ext \
	  --build-temp $(PORTABLE)/temp --build-lib $(PORTABLE)
	touch $@

test-portable: $(PORTABLE)/.built
	MSA_OPS_LIBRARY_DIR=$(CURDIR)/$(PORTABLE)/msa_ops ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 \
	OMP_NUM_THREADS=1 $(PYTEST) $(addprefix tests/ops/,partial_conv decoder_conv shift_attention \
	core/test_mask_bytes.py core/test_largest_numbers.py core/test_tolerances.py core/test_repeatability.py) \
	--ignore-glob='*triton*' --ignore-glob='*registration*' --ignore-glob='*refusals*' $(PYTEST_ARGS)

# Random cases against every part, each with a new seed that it prints. make -j2 runs two attacks at once.
ATTACKS := operators kills checkpoints files weights
SECONDS ?= 60
.PHONY: $(ATTACKS:%=attack-%)
attack: $(ATTACKS:%=attack-%)
$(ATTACKS:%=attack-%): attack-%: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.attack $* --seconds $(SECONDS) $(if $(SEED),--seed $(SEED))

# The kernels, with their AVX clones and without, under address and undefined-behaviour sanitizers. Leaks are not looked
# for, because Python and torch never free some of what they allocate. libstdc++ has to be there before the sanitizer
# starts, which otherwise does not see the function that throws exceptions.
FUZZ_SECONDS ?= 60
CXX ?= c++
preload = LD_PRELOAD="$$($(CXX) -print-file-name=$(1)) $$($(CXX) -print-file-name=libstdc++.so.6)"
ADDRESS = $(call preload,libasan.so) ASAN_OPTIONS=detect_leaks=0:abort_on_error=1:allocator_may_return_null=1 \
	UBSAN_OPTIONS=abort_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=1

build/sanitize/.built build/sanitize-portable/.built: build/%/.built: $(VENV)/.installed
	MSA_OPS_NO_CUDA=1 MSA_OPS_SANITIZE=address MSA_OPS_PORTABLE=$(if $(findstring portable,$*),1,0) \
	$(BIN)/python setup.py --quiet build_ext --build-temp $(@D)/temp --build-lib $(@D)
	touch $@

# Torch, Python and libgomp know nothing of the thread sanitizer; it sees their locks, and operators_openmp.c tells it
# of parallel regions. Without address randomisation, which the sanitizer of older compilers does not bear.
build/sanitize-threads/.built: $(VENV)/.installed tests/attack/operators_openmp.c
	MSA_OPS_NO_CUDA=1 MSA_OPS_SANITIZE=thread \
	$(BIN)/python setup.py --quiet build_ext --build-temp $(@D)/temp --build-lib $(@D)
	$${CC:-cc} -O1 -fPIC -shared tests/attack/operators_openmp.c -o $(@D)/openmp.so
	touch $@

sanitize-threads: build/sanitize-threads/.built
	LD_PRELOAD="$$($(CXX) -print-file-name=libtsan.so) $(CURDIR)/$(<D)/openmp.so" TSAN_OPTIONS=halt_on_error=1:abort_on_error=1 \
	MSA_OPS_LIBRARY_DIR=$(CURDIR)/$(<D)/msa_ops setarch -R $(BIN)/python -m tests.attack.operators_threads

sanitize: build/sanitize/.built build/sanitize-portable/.built
	$(ADDRESS) MSA_OPS_LIBRARY_DIR=$(CURDIR)/build/sanitize/msa_ops \
	$(BIN)/python -m tests.attack operators --seconds $(FUZZ_SECONDS)
	$(ADDRESS) MSA_OPS_LIBRARY_DIR=$(CURDIR)/build/sanitize-portable/msa_ops ATEN_CPU_CAPABILITY=default \
	$(BIN)/python -m tests.attack operators --seconds $(FUZZ_SECONDS)
	$(ADDRESS) MSA_OPS_LIBRARY_DIR=$(CURDIR)/build/sanitize/msa_ops \
	$(PYTEST) tests/ops --ignore-glob='*triton*' $(PYTEST_ARGS)

# The tools of an extra of pyproject.toml, without building the package again for them.
install_extra = $(BIN)/python -c 'import sys, tomllib; \
	print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"][sys.argv[1]], sep="\n")' $(1) \
	| xargs -d '\n' $(BIN)/python -m pip install --quiet

$(VENV)/.linters: pyproject.toml $(VENV)/.installed
	$(call install_extra,lint)
	touch $@

lint: $(VENV)/.linters
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $$(find csrc -type f)
	$(BIN)/mypy

format: $(VENV)/.linters
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $$(find csrc -type f)

$(VENV)/.docs: pyproject.toml $(VENV)/.installed
	$(call install_extra,docs)
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

cuda-check: $(VENV)/.installed
	$(BIN)/python -m benchmarks.cuda_resources

$(VENV)/.auditwheel: pyproject.toml $(VENV)/.installed
	$(call install_extra,wheel)
	touch $@

# torch's own wheels are manylinux_2_28, so a lower tag would promise too much; auditwheel refuses what needs a newer
# glibc or libstdc++. torch's libraries are a dependency, not part of the wheel.
wheel: $(VENV)/.auditwheel
	rm -rf dist/wheel dist/*.whl
	$(BIN)/python -m pip wheel --quiet --no-build-isolation --no-deps --wheel-dir dist/wheel .
	PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/python -m auditwheel repair --exclude 'libtorch*' --exclude 'libc10*' \
	  --only-plat --plat manylinux_2_28_$$(uname -m) --wheel-dir dist dist/wheel/*.whl

versions: wheel
	$(BIN)/python -m tests.wheel dist/*.whl $(if $(PAIRS),--pairs $(PAIRS))

bench: $(VENV)/.installed
	$(BIN)/python -m benchmarks.operators
	$(BIN)/python -m benchmarks.operators --suite layers --compiled --name compiled
	$(BIN)/python -m benchmarks.operators --suite generator --batch 1 --compiled --name inference
	$(BIN)/python -m benchmarks.table5 --quick
	$(BIN)/python -m benchmarks.table5.loader --save
	$(BIN)/python -m benchmarks.demo_weights
	$(BIN)/python -m benchmarks.report

gpu:
	$(PYTHON) -m benchmarks.gpu $(if $(PART),--part $(PART))

clean:
	rm -rf build dist out site *.egg-info msa_ops/*.so .pytest_cache .ruff_cache .mypy_cache .hypothesis \
	  $(VENV)/.installed
