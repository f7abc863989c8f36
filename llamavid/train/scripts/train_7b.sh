#!/bin/sh
# The paper's training of the 7B model, a step a call, in this order:
#
#   sh train_7b.sh start     a checkpoint out of the published weights
#   sh train_7b.sh stage1    modality alignment
#   sh train_7b.sh stage2    instruction tuning
#   sh train_7b.sh stage3    long video
#
# The settings are in stage1_7b.json, stage2_7b.json and stage3_7b.json beside this file. What stands here can be
# set outside, as in GPUS=4 sh train_7b.sh stage1: a batch is the same however many GPUs share it. More
# settings may follow the stage: sh train_7b.sh stage1 --set micro_batch=8
set -eu
here=$(cd "$(dirname "$0")" && pwd)

GPUS=${GPUS:-8}
RUNS=${RUNS:-runs-7b}

# Starting weights.
VICUNA=${VICUNA:-vicuna-7b-v1.5}
EVA=${EVA:-eva_vit_g.pth}
INSTRUCT_BLIP=${INSTRUCT_BLIP:-instruct_blip_vicuna7b_trimmed.pth}
BERT=${BERT:-bert-base-uncased}
IMAGE_PROCESSOR=${IMAGE_PROCESSOR:-224}

# LLaVA JSON; pictures and videos are looked for from the folder that it is in.
CAPTIONS=${CAPTIONS:-data/captions.json}              # 558K pictures and 232K videos with captions
INSTRUCTIONS=${INSTRUCTIONS:-data/instructions.json}  # 625K turns on pictures, 98K on videos, 40K on text
LONG_VIDEO=${LONG_VIDEO:-data/long_video.json}        # 9K on movies, 6K on long texts

step=${1:-}
case $step in
start)
    shift
    exec python -m llamavid.train.start --language "$VICUNA" --vision-tower "$EVA" \
        --text-decoder "$INSTRUCT_BLIP" --text-tokenizer "$BERT" --image-processor "$IMAGE_PROCESSOR" \
        --queries 32 -o "$RUNS/start" "$@"
    ;;
stage1) from=start data=$CAPTIONS ;;
stage2) from=stage1 data=$INSTRUCTIONS ;;
stage3) from=stage2 data=$LONG_VIDEO ;;
*)
    echo "usage: sh train_7b.sh start|stage1|stage2|stage3 [--set NAME=VALUE ...]" >&2
    exit 2
    ;;
esac
shift
exec accelerate launch --config_file "$here/../zero2.yaml" --num_processes "$GPUS" \
    -m llamavid train "$step" --config "$here/${step}_7b.json" \
    --set "checkpoint=$RUNS/$from/checkpoint" --set "data=$data" --set "output=$RUNS/$step" "$@"
