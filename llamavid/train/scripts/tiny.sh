#!/bin/sh
# The tiny model from nothing: sh llamavid/train/scripts/tiny.sh WORK PACKAGE
# Run again after a crash, it continues; what is done is not done again.
set -eu
work=$1
package=$2
settings=$(dirname "$0")

once() { # FOLDER COMMAND...: the command writes the folder, and renames it when complete
    test -e "$1" || { shift; "$@"; }
}

stage() { # NAME START DATA: a file, or a JSON list of files
    test -e "$work/$1.json" && return
    llamavid train "$1" --config "$settings/$1_tiny.json" --json --set "checkpoint=$2/checkpoint" --set "data=$3" \
        --set "output=$work/$1" --set "feature_cache=$work/features" > "$work/$1.partial"
    mv "$work/$1.partial" "$work/$1.json"
}

world() { # NAME SPLIT SEED WHAT...
    name=$work/$1 split=$2 seed=$3
    shift 3
    once "$name" python -m llamavid.train.little_world --split "$split" --seed "$seed" "$@" -o "$name"
}

score() { # NAME DATA...
    llamavid eval "$package/bundle" --json "$2" ${3:-} > "$work/$1.json"
}

mkdir -p "$work"
once "$work/start" python -m llamavid.train.tiny_pretraining -o "$work/start"
world world train 1 --clips 6000 --stills 1500
world long train 2 --clips 3000 --longs 120
world told train 3 --clips 800
world heldout heldout 1 --clips 300
world heldout-long heldout 1 --longs 25

stage stage1 "$work/start" "$work/world/captions.json"
stage stage2 "$work/stage1" "$work/world/instructions.json"
# With captions, so that it can still tell what it sees when it is asked to describe.
stage stage3 "$work/stage2" "[\"$work/long/instructions.json\", \"$work/told/captions.json\"]"

python -m llamavid.train.tiny_package "$work/stage3" -o "$package"
llamavid export "$package/release/checkpoint" -o "$package/bundle" --precision fp16 --llm-precision fp16 --replace
score heldout "$work/heldout/questions.json"
score long "$work/heldout-long/questions.json"
score blind "$work/heldout/questions.json" --blind
python -m llamavid.train.tiny_card "$work" -o "$package"
llamavid demo
