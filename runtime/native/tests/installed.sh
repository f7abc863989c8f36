#!/bin/sh
# Installed somewhere, the library is found by pkg-config and a program built against it runs.
#   installed.sh CMAKE BUILD CC
set -eu
cmake=$1 build=$2 cc=$3
if ! command -v pkg-config > /dev/null; then
    echo "pkg-config is missing: not tested" >&2
    exit 77
fi
prefix=$build/installed
rm -rf "$prefix"
"$cmake" --install "$build" --prefix "$prefix" > /dev/null
PKG_CONFIG_PATH=$(dirname "$(find "$prefix" -name llamavid_runtime.pc)")
export PKG_CONFIG_PATH
lib=$(pkg-config --variable=libdir llamavid_runtime)
camera=$prefix/camera
# shellcheck disable=SC2046
"$cc" -std=c99 -Wall -Wextra -Werror -pedantic "$(dirname "$0")/../examples/camera.c" -o "$camera" \
    $(pkg-config --cflags --libs llamavid_runtime) -lpthread
# The program that runtime.h opens with, word for word.
sed -n '/^ \*   #include <stdio.h>/,/^ \*   }$/s/^ \* \{0,3\}//p' \
    "$prefix/include/llamavid/runtime.h" > "$prefix/program.c"
# shellcheck disable=SC2046
"$cc" -std=c99 -Wall -Wextra -Werror -pedantic "$prefix/program.c" -o "$prefix/program" \
    $(pkg-config --cflags --libs llamavid_runtime)
LD_LIBRARY_PATH=$lib
export LD_LIBRARY_PATH
sh "$(dirname "$0")/camera.sh" "$camera"
test "$("$prefix/program")" = "0 s: 0.076336
1 s: 0.076336
2 s: 0.076336"
