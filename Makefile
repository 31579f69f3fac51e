PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin

.PHONY: demo test fast check format constraints clean

demo: $(VENV)/.runtime
	$(BIN)/lipadvisor demo $(DEMO)

# Two workers of one thread each: threads that wait for one another on busy cores take twenty times as long.
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TESTS)

# The tests that take a few seconds at most.
fast: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m "not slow" $(TESTS)

# Style, imports and static types; types are checked on the built package, where every import name resolves.
check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	rm -rf build
	$(BIN)/python -m pip install -q --no-deps --target build/typed .
	cd build/typed && ../../$(BIN)/python -m mypy --config-file ../../pyproject.toml -p lipadvisor

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e .
	touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	touch $@ $(VENV)/.runtime

# Writes the lock. The torch that pip installs is the one named here.
constraints: $(VENV)/.dev
	$(BIN)/python -m pip install -q uv
	mkdir -p build
	echo "torch==2.13.0" > build/torch.txt
	$(BIN)/uv pip compile --universal --all-extras --upgrade -c build/torch.txt -o constraints.txt pyproject.toml

clean:
	rm -rf build .venv
