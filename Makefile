# Each target works on its own on a machine that has only Python >= 3.11 and pip.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
INPUTS := pyproject.toml constraints.txt

.PHONY: demo test slow lint format bench clean

demo: $(VENV)/.core  ## a report on the bundled model, offline: ends with the path of the page
	$(BIN)/farfield report digits --out runs/demo

test: $(VENV)/.test  ## the whole quick test suite
	$(BIN)/python -m pytest

slow: $(VENV)/.test  ## the tests that take longer
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.lint  ## style, types, import rules
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(VENV)/.lint  ## rewrite the code in the house style
	$(BIN)/ruff format src tests benchmarks
	$(BIN)/ruff check --fix src tests benchmarks

bench: $(VENV)/.test  ## every benchmark, each figure beside its limit
	$(BIN)/python -m benchmarks

clean:
	rm -rf $(VENV) runs

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.core: $(VENV)/bin/python $(INPUTS)
	$(PIP) --editable .
	@touch $@

# Other libraries' solvers are tested against; azula asks for torchvision, which it needs for nothing that is used here and
# which would replace torch.
$(VENV)/.test: $(VENV)/.core
	$(PIP) --editable '.[test]'
	$(PIP) --no-deps azula
	@touch $@

$(VENV)/.lint: $(VENV)/.core
	$(PIP) --editable '.[lint]'
	@touch $@

