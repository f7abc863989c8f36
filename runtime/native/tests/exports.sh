#!/bin/sh
# The library gives away the header's functions and nothing else.
#   exports.sh NM LIBRARY
set -eu
header=$(dirname "$0")/../include/llamavid/runtime.h
declared=$(sed -n 's/^LLAMAVID_API.*[ *]\(llamavid_[a-z0-9_]*\)(.*/\1/p' "$header" | sort)
exported=$("$1" --dynamic --defined-only "$2" | awk '{ print $3 }' | sort)
test -n "$declared"
test "$declared" = "$exported" || {
    printf 'declared:\n%s\n\nexported:\n%s\n' "$declared" "$exported" >&2
    exit 1
}
