#!/bin/sh
# examples/camera.c over raw frames in a pipe.
#   camera.sh CAMERA
set -eu
camera=$1

expect() { # WHAT EXPECTED GIVEN
    test "$2" = "$3" || {
        printf '%s\nexpected:\n%s\ngiven:\n%s\n' "$1" "$2" "$3" >&2
        exit 1
    }
}

expect "60 black RGB frames at 25 a second, one kept for each" "\
frame 0 at 0.000 s, mean -1.674860
frame 25 at 1.000 s, mean -1.674860
frame 50 at 2.000 s, mean -1.674860
sequence of 10 rows for the language model
pushed 60, kept 3, sampled out 57, refused 0, dropped 0, delivered 3" \
    "$(head -c $((64 * 48 * 3 * 60)) /dev/zero | "$camera" --stdin 64x48 rgb24)"

# All zero in YUV is a dark green; both sides are odd, so chroma is half of the next even one.
expect "3 NV12 frames at 2 a second, all kept" "\
frame 0 at 0.000 s
frame 1 at 0.500 s
frame 2 at 1.000 s" \
    "$(head -c $(((65 * 47 + 66 * 24) * 3)) /dev/zero | "$camera" --stdin 65x47 nv12 --rate 2 --fps 9 |
        sed -n 's/, mean.*//p')"

if head -c 100 /dev/zero | "$camera" --stdin 64x48 rgb24 > /dev/null 2>&1; then
    echo "a frame that is cut passed for a whole one" >&2
    exit 1
fi
for wrong in "" "--stdin 64x48" "--stdin 0x48 rgb24" "--stdin 64x48 yuyv" "--stdin 64x48 nv12 --fps 0"; do
    # shellcheck disable=SC2086
    "$camera" $wrong < /dev/null > /dev/null 2>&1 && status=0 || status=$?
    expect "camera $wrong" 2 "$status"
done
said=$("$camera" /dev/null 2>&1 > /dev/null | sed 's/ (.*//')
expect "a device that is no camera" "/dev/null: is no camera" "$said"
