# Everything runs in .venv, which is made when it is missing.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The folder stands on the path, so that type checkers of other projects find it, too.
PLAIN := --config-settings editable_mode=compat

.PHONY: help demo test slow torture bench bench-gpu check audit sbom lock docs tutorials mutants format newest clean

help:
	@echo "make demo     a sweep over three methods and three seeds on the digits, and its report (about two minutes)"
	@echo "make test     the tests, but for the slow ones"
	@echo "make slow     the slow tests"
	@echo "make torture  damaged files, errors of the system, kills, odd inputs (an hour; each alone: docs/reliability.md)"
	@echo "make bench    what steps, evaluation, planning, budgets and whole runs cost (about 45 minutes)"
	@echo "make bench-gpu  the same of steps, and of several seeds at once, on a GPU (under ten minutes)"
	@echo "make check    format, lint, types, doctests"
	@echo "make audit    known holes in the versions of constraints.txt (asks a server), and bandit's findings"
	@echo "make sbom     sbom.json, a software bill of materials of those versions (CycloneDX)"
	@echo "make lock     pylock.toml, those versions with the hashes of their files, for this machine"
	@echo "make docs     the manual as a site: site/index.html, which needs no server and no network"
	@echo "make tutorials  runs the tutorials and stores their pictures (about three minutes)"
	@echo "make mutants  whether the tests notice changes of the core: N=20 of them, drawn by SEED=0 (about 15 minutes)"
	@echo "make format   put the code into shape"
	@echo "make newest   the tests with the newest torch that pip offers, in a venv of its own"

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]" $(PLAIN)
	@touch $@

# What is done is not done again: `rm -r runs/demo` to see it once more.
demo: $(STAMP)
	$(BIN)/dnat sweep --networks resnet8 --methods original,dnat-full,dnat-full@0.5 --seeds 3 \
		--epochs 24 --architecture-epochs 8 --batch-size 64 --jobs 2 --out runs/demo
	$(BIN)/dnat report runs/demo

# Each test has one thread; with a process a core (at most eight) the suite takes half the time on two cores.
test: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m "not slow"

# Whole trainings, longer than what `make test` has of their kind.
slow: $(STAMP)
	$(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist worksteal -m slow

# Each also runs alone, and tells with -h how fewer or more cases are tried.
torture: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/torture_files.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/torture_system.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/torture_kills.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/torture_parsers.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/leaks.py

bench: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/steps.py --out benchmarks/results/steps.json
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/evaluation.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/planning.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/budgets.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/scaling.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/latency.py
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/latency.py --time
	OMP_NUM_THREADS=1 $(BIN)/python -W ignore benchmarks/whole.py --data digits --network resnet8

bench-gpu: $(STAMP)
	$(BIN)/python -W ignore benchmarks/steps.py --device cuda --rounds 20 --out benchmarks/results/steps-gpu.json
	$(BIN)/python -W ignore benchmarks/steps.py --device cuda --rounds 20 --amp bf16
	$(BIN)/python -W ignore benchmarks/steps.py resnet20 --device cuda --rounds 20 --compile
	$(BIN)/python -W ignore benchmarks/together.py --data digits --network resnet8

# The rules of ruff that begin with S are bandit's, as far as ruff has them.
check: $(STAMP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/python -m pytest -q --doctest-modules dnat

# The site's tools are for this alone, so they come when it is built.
docs: $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]" $(PLAIN)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo site/index.html

tutorials: $(STAMP)
	$(BIN)/python docs/blocks.py

# Tools that dnat's own environment is better without.
TOOLS := .venv-tools
$(TOOLS)/.installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --upgrade pip bandit pip-audit cyclonedx-bom
	@touch $@

audit: $(TOOLS)/.installed
	$(TOOLS)/bin/bandit --quiet --recursive dnat --severity-level high
	$(TOOLS)/bin/pip-audit --requirement constraints.txt --no-deps --disable-pip

sbom: $(TOOLS)/.installed
	$(TOOLS)/bin/cyclonedx-py requirements --output-reproducible --pyproject pyproject.toml --of JSON -o sbom.json constraints.txt
	@echo sbom.json

# Of the wheels that fit this machine, from the index that pip uses here: torch's differ from index to index.
lock: $(TOOLS)/.installed
	$(TOOLS)/bin/python -m pip lock --quiet -c constraints.txt ".[dev]" -o pylock.toml
	@echo "pylock.toml (pip install -r pylock.toml, with pip 26.1 or newer, takes nothing else than these files)"

N ?= 20
SEED ?= 0
mutants: $(STAMP)
	$(BIN)/python benchmarks/mutants.py -n $(N) --seed $(SEED)

format: $(STAMP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

# The bounds on torch are what was tested. This tests beyond them, as CONTRIBUTING.md says.
newest:
	$(PYTHON) -m venv .venv-newest
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	.venv-newest/bin/python -m pip install --quiet --disable-pip-version-check --upgrade torch torchvision
	.venv-newest/bin/python -m pytest -q

clean:
	rm -rf $(VENV) $(TOOLS) .venv-newest build dist site *.egg-info .mypy_cache .ruff_cache .pytest_cache
