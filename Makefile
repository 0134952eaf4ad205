# Three commands matter: `make reproduce`, `make check` and `make test`. They need Python 3.11 or later and make, nothing else.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
RUN := $(BIN)/python
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# Threads that wait sleep instead of spinning: beside other work, spinning made short operations many times slower.
export OMP_WAIT_POLICY ?= passive

# Processes of the test suite; each runs with one thread. tests/conftest.py says what they share.
WORKERS ?= 2

# REQUIREMENTS=newest ignores the tested set and takes the newest releases that pyproject.toml allows.
REQUIREMENTS ?= requirements.txt
ifeq ($(REQUIREMENTS),newest)
PACKAGES := "setuptools>=77" ".[train,fast,export,book,teach,dev]"
else
PACKAGES := -r $(REQUIREMENTS)
endif

# The stamp's name carries what the environment was made from, and it is written last: a changed pin, a moved
# checkout or an interrupted install has no stamp, and the environment is made afresh.
KEY := $(shell { cat requirements.txt pyproject.toml; pwd; echo '$(PACKAGES)'; } | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/complete-$(KEY)

NOTEBOOK := resnet18_cifar
RESULT := _build/reproduce/$(NOTEBOOK)
NOTEBOOKS := $(wildcard reproductions/*.ipynb)

.DEFAULT_GOAL := help
.PHONY: help venv reproduce check test slow fuzz mutants lowest lint format outputs export book book-report hand-out assignments grade publish-notebooks bench gpu gpu-train clean
.DELETE_ON_ERROR:

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 12

venv: $(STAMP) ## create .venv from requirements.txt (PYTHON=python3.12 chooses another interpreter)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or later is needed, $(PYTHON) is %d.%d: make PYTHON=python3.12" % sys.version_info[:2])'
	@if [ -e $(VENV) ] && [ ! -e $(VENV)/made-by-make ]; then \
		echo "$(VENV) was not made by make and is left alone; choose another folder: make VENV=.venv-make ..." >&2; exit 1; fi
	rm -rf $(VENV)
	mkdir -p $(VENV) && touch $(VENV)/made-by-make
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet $(PACKAGES)
	$(BIN)/pip install --quiet --no-deps --no-build-isolation -e .
	touch $@

reproduce: $(STAMP) ## run the reproduction notebook and say where the result is
	mkdir -p $(dir $(RESULT))
	$(BIN)/papermill --kernel python3 reproductions/$(NOTEBOOK).ipynb $(RESULT).ipynb
	$(BIN)/jupyter-nbconvert --log-level ERROR --to html $(RESULT).ipynb
	@echo "result: $(RESULT).html (page), $(RESULT).ipynb (notebook)"

test: $(STAMP) lint ## style, types, unit tests, doctests, the reproduction notebook, the book
	$(RUN) -m pytest tests dqt_core $(NOTEBOOKS) --durations 10 \
		--numprocesses $(WORKERS) --no-loadscope-reorder \
		--nbval --nbval-current-env --nbval-sanitize-with tests/sanitize.cfg

check: $(STAMP) lint ## style, types, doctests and unit tests of the rooms touched since main (ROOM="backends export" names them)
	$(RUN) -m pytest --numprocesses $(WORKERS) $$($(RUN) tests/touched.py $(ROOM))

slow: $(STAMP) ## what `make test` leaves out: 5,000 programs with mistakes (SEED=n repeats one), all of CIFAR-10, a graded class
	$(RUN) -m pytest -m slow -s tests

MINUTES ?= 60
fuzz: $(STAMP) ## random cases of all that is handed to the package, for MINUTES (60); SEED=n repeats them
	WORKERS=$(WORKERS) $(RUN) tests/fuzz.py $(MINUTES) $(SEED)

LOWEST := import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; e = p["optional-dependencies"]; \
	print(*p["dependencies"], *e["train"], *e["fast"], *e["export"], sep="\n")
QUICK := nested integer program contract backends selftest export qdq conversion lowering objective allocate data shards streaming

lowest: ## the quick tests with the lowest versions that pyproject.toml allows, in .venv-lowest
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -c '$(LOWEST)' | sed 's/>=/==/' > .venv-lowest/lowest.txt
	.venv-lowest/bin/pip install --quiet -r .venv-lowest/lowest.txt pytest filelock hypothesis "setuptools>=77"
	.venv-lowest/bin/pip install --quiet --no-deps --no-build-isolation -e .
	.venv-lowest/bin/python -m pytest $(QUICK:%=tests/test_%.py)

mutants: $(STAMP) ## small mistakes in Python, one at a time: how many the tests notice (MODULES="dqt_core.nested*")
	$(RUN) -m pytest -m mutants tests
	$(RUN) tests/mutants.py $(MODULES)

lint: $(STAMP) ## style, types, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

outputs: $(STAMP) ## run the notebooks anew, without data, and store their outputs
	$(RUN) -c "from dqt_core.backends import numba_cpu; numba_cpu.prepare()"
	for notebook in $(NOTEBOOKS); do \
		$(BIN)/jupytext --quiet --update --to ipynb $${notebook%.ipynb}.py && \
		env -u DQT_DATA MPLCONFIGDIR=$(CURDIR)/_build/matplotlib $(BIN)/jupyter-nbconvert --log-level ERROR --to notebook --execute --inplace \
			--ExecutePreprocessor.record_timing=False --ExecutePreprocessor.coalesce_streams=True $$notebook || exit 1; done

export: $(STAMP) ## the shipped network for digits as an ONNX and a C file, in _build/export
	$(RUN) -m dqt_core.export dqt_core/program/resnet18_embedded-*.safetensors \
		--onnx _build/export/digits.onnx --c _build/export/digits.c

book: $(STAMP) ## build the book and its slides into _build/html
	$(RUN) -m dqt_book.pages.build

book-report: $(STAMP) ## build the book twice; print its times, the weight of each page, what axe-core finds
	$(RUN) -m dqt_book.pages.report

hand-out: book ## print the workshop's hand-out to _build/hand-out.pdf (needs Chromium)
	$(RUN) -m dqt_book.pages.hand_out

assignments: $(STAMP) ## write the assignments into _build/assignments: release/ for students, source/ for instructors
	$(RUN) -m dqt_book.assignments make

grade: $(STAMP) ## grade all notebooks in SUBMISSIONS=DIR, which has a folder for each student
	$(RUN) -m dqt_book.assignments grade "$(SUBMISSIONS)"

publish-notebooks: ## put the notebooks of the built book on the branch `notebooks` of origin, for Colab and Binder
	@test -d _build/html/_notebooks || { echo "there are no notebooks yet: make book" >&2; exit 1; }
	export GIT_INDEX_FILE=$(CURDIR)/_build/notebooks.index && rm -f $$GIT_INDEX_FILE && \
	git --work-tree=_build/html/_notebooks add --all --force . && \
	git push --force origin $$(git -c user.name="$$(git log -1 --format=%an)" -c user.email="$$(git log -1 --format=%ae)" \
		commit-tree -m "Notebooks of $$(git rev-parse --short HEAD)" $$(git write-tree)):refs/heads/notebooks

# On a GPU machine PYTHON is used as it is: it needs torch for CUDA, one CuPy, numpy, safetensors, pytest and
# hypothesis, and nothing of the environment above. Without such a Python: make venv, then
# .venv/bin/pip install cupy-cuda13x (or cupy-cuda12x), then make gpu PYTHON=.venv/bin/python
gpu: ## tests, measurements and sanitizer on this machine's GPU (PYTHON=python3 is used as it is)
	$(PYTHON) -m benchmarks.gpu.run

bench: $(STAMP) ## measure this machine's CPU against torch and ONNX Runtime, on one thread and on all
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.cpu --threads 1 --out reproductions/results/cpu
	env -u OMP_WAIT_POLICY $(RUN) -m benchmarks.cpu --out reproductions/results/cpu
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks.planes --out reproductions/results

gpu-train: ## train ResNet-18 at full width on this machine's GPU (PYTHON, DQT_DATA); goes on where it stopped
	$(PYTHON) -m reproductions.cifar10.train --dataset cifar10 --width-multiplier 1 --epochs 100 \
		--nested-epochs 20 --out runs/resnet18_cifar_64

clean: ## remove what was built; the environment stays
	rm -rf _build build dist mutants *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
