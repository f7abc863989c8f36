#!/bin/sh
# The C tests for 64-bit Arm, on any Linux machine: cross-compiled, then run by an emulator.
# On Debian: apt-get install g++-aarch64-linux-gnu qemu-user
set -eu
cd "$(dirname "$0")/../../.."
build=${1:-build/native-neon}
cmake -S . -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure
