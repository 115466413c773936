# make demo   trains small networks on digits, quantizes, exports, proves and prints a table
# make test   the tests                make test-full   the slow ones too
# make lint   ruff, ruff format, mypy  make bench       the measurements behind the README
# make docs   the documentation as web pages, in out/docs; a warning is an error
# make test-versions   the tests on each combination of requirements/versions, hours and gigabytes
# make test-emulated   exported files on CPUs that this machine lacks: x86 without VNNI, SSE, ARM64
# make zoo    foreign models through the whole pipeline, in an environment of its own
PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2

BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints.txt
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
# one thread per process: what the numbers in the README were taken with, and `-n` fills the cores
ONE := OMP_NUM_THREADS=1 MKL_NUM_THREADS=1

.PHONY: demo docs test test-full test-emulated test-versions lint types bench zoo clean
.DEFAULT_GOAL := help

.PHONY: help
help:
	@sed -n 's/^# //p' Makefile

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "fxquant needs Python 3.11 or newer, but '$(PYTHON)' is $$($(PYTHON) --version 2>&1)."; \
	  echo "Point PYTHON at one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# stamps: the second `make` installs nothing
$(VENV)/.installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	@echo "installing into $(VENV) (once)"
	$(PIP) install -c $(CONSTRAINTS) -e ".[demo,test]"
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(PIP) install -c $(CONSTRAINTS) -e ".[demo,test,dev,docs]"
	@touch $@

demo: $(VENV)/.installed
	$(BIN)/python -m examples.digits_demo --out out

test: $(VENV)/.installed
	$(ONE) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "not full" $(ARGS)

test-full: $(VENV)/.installed
	$(ONE) $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(ARGS)

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.installed-dev
	rm -rf docs/api/generated out/docs
	$(BIN)/python -m sphinx -b html -W --keep-going -q docs out/docs

bench: $(VENV)/.installed
	$(ONE) $(BIN)/python -m benchmarks.sim_speed
	$(ONE) $(BIN)/python -m benchmarks.calibration
	$(ONE) $(BIN)/python -m benchmarks.compile_speed
	$(ONE) $(BIN)/python -m benchmarks.inspect_speed
	$(ONE) $(BIN)/python -m benchmarks.latency
	$(ONE) $(BIN)/python -m benchmarks.import_speed

# the packages of the zoo, over those that are installed already: torch comes from there
$(VENV)-zoo/.installed: requirements/zoo.txt $(VENV)/.installed
	$(BIN)/python -m venv $(VENV)-zoo
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' \
	  > "$$($(VENV)-zoo/bin/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/base.pth"
	$(VENV)-zoo/bin/python -m pip --disable-pip-version-check --quiet install --no-deps -r $<
	@touch $@

# installs Debian's emulators where they are missing, which takes root
test-emulated: $(VENV)/.installed
	$(ONE) $(BIN)/python -m tests.emulated $(ARGS)

zoo: $(VENV)-zoo/.installed
	$(ONE) $(VENV)-zoo/bin/python -m tests.zoo --jobs $(JOBS) --out out/zoo --table docs/support.md $(ARGS)

# one environment a combination, named like its file: python, torch, onnxruntime. All other
# packages are those of the constraints, so what fails there is theirs
VERSIONS ?= $(patsubst requirements/versions/%.txt,%,$(sort $(wildcard requirements/versions/*.txt)))

test-versions:
	@$(MAKE) --no-print-directory --keep-going $(VERSIONS:%=version-%)

.PHONY: $(VERSIONS:%=version-%)
$(VERSIONS:%=version-%): version-%: requirements/versions/%.txt
	@python=python$(patsubst py%,%,$(firstword $(subst -, ,$*))); bin=$(VENV)-$*/bin; log=out/$*.log; \
	mkdir -p out; \
	if ! $$python -c '' 2>/dev/null; then echo "$*: skipped, there is no $$python here"; exit 0; fi; \
	if [ ! -e $(VENV)-$*/.installed ]; then \
	  $$python -m venv $(VENV)-$* && \
	  grep -vE '^(torch|onnxruntime)==' $(CONSTRAINTS) > $(VENV)-$*/constraints.txt && \
	  $$bin/python -m pip --disable-pip-version-check --quiet install \
	    -c $(VENV)-$*/constraints.txt -r $< -e ".[demo,test]" && touch $(VENV)-$*/.installed || exit 1; \
	fi; \
	$(ONE) $$bin/python -m pytest -n $(JOBS) --dist worksteal -m "not full" $(ARGS) > $$log 2>&1; found=$$?; \
	echo "$*: $$(tail -n 1 $$log | tr -d =) ($$log)"; exit $$found

clean:
	rm -rf out build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
