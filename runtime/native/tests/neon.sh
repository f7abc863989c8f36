#!/bin/sh
# The C tests for 64-bit Arm, on any Linux machine: cross-compiled, then run by an emulator.
#   neon.sh               fails where those two are missing
#   neon.sh --if-possible passes there, having said what is missing
set -eu
cd "$(dirname "$0")/../../.."
missing=
for tool in aarch64-linux-gnu-g++ qemu-aarch64; do
    command -v "$tool" > /dev/null || missing="$missing $tool"
done
if [ -n "$missing" ]; then
    echo "NEON is not tested here, for want of$missing. On Debian: apt-get install g++-aarch64-linux-gnu qemu-user" >&2
    test "${1:-}" = --if-possible
    exit
fi
build=build/native-neon
cmake -S . -B "$build" -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
    -DCMAKE_C_COMPILER=aarch64-linux-gnu-gcc -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++ \
    "-DCMAKE_CROSSCOMPILING_EMULATOR=qemu-aarch64;-L;/usr/aarch64-linux-gnu"
cmake --build "$build"
ctest --test-dir "$build" --output-on-failure
