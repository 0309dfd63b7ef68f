#!/usr/bin/env bash
# AltCLIP as published: a student learns the text state before CLIP's projection, then images and texts are contrasted.
#
#   examples/altclip/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of features teach align evaluate export (default: all). A stage that has its result is skipped; an
# interrupted one continues from its last checkpoint.
#
#   --dry-run   print the commands without running them
#   --tiny      a few updates of a tiny model on the CPU, to check that data and stages fit together
#   --gpus N    processes on this machine, through torchrun (default: 1); on several machines:
#               RECIPE=altclip sbatch examples/mclip/slurm.sbatch
#
# Paths and settings are environment variables; override any of them:
#   XLMR=xlmr.base       fairseq's archive: model.pt, dict.txt, sentencepiece.bpe.model
#   TEXTS=data/parallel-captions/bin   captions in LANGS, English among them, binarised, with ids files whose second
#                        column names the English caption
#   ENGLISH=data/parallel-captions/en.tsv   the English captions: id, tab, caption
#   CAPTIONS=data/cc3m/bin   captions with image ids, for align; PHOTOS=data/cc3m/images, their image folder
#   LANGS=en,zh   TEACHER=openai/clip-vit-base-patch16
#   BENCHMARKS="data/sets/multi30k-task1:test_2016_flickr"  IMAGES="data/flickr30k"   for evaluate; or
#                        IMAGE_FEATURES="..."
#   OUT=runs/altclip   SEED=42   TEACH_EPOCHS=10   ALIGN_EPOCHS=1
#   ARCH=altclip_base    PRECISION="--fp16 --fp16-no-flatten-grads"   OPTIONS=   further options of both trainings
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
stages "features teach align evaluate export" "$@"

XLMR=${XLMR:-xlmr.base} TEXTS=${TEXTS:-data/parallel-captions/bin} ENGLISH=${ENGLISH:-data/parallel-captions/en.tsv}
CAPTIONS=${CAPTIONS:-data/cc3m/bin} PHOTOS=${PHOTOS:-data/cc3m/images} LANGS=${LANGS:-en,zh}
TEACHER=${TEACHER:-openai/clip-vit-base-patch16} OUT=${OUT:-runs/altclip} SEED=${SEED:-42} ARCH=${ARCH:-altclip_base}
TEACH_LENGTH=(--max-epoch "${TEACH_EPOCHS:-10}") ALIGN_LENGTH=(--max-epoch "${ALIGN_EPOCHS:-1}")
TEACH_BATCH=${TEACH_BATCH:-512} ALIGN_BATCH=${ALIGN_BATCH:-64}
read -ra PRECISION <<< "${PRECISION---fp16 --fp16-no-flatten-grads}"
read -ra OPTIONS <<< "${OPTIONS:-}"
read -ra BENCHMARKS <<< "${BENCHMARKS:-data/sets/multi30k-task1:test_2016_flickr}"
read -ra IMAGES <<< "${IMAGES:-}"
read -ra IMAGE_FEATURES <<< "${IMAGE_FEATURES:-}"
if ((TINY)); then
  TEACH_LENGTH=(--max-update 2) ALIGN_LENGTH=(--max-update 2) TEACH_BATCH=16 ALIGN_BATCH=16 ARCH=altclip_tiny
  PRECISION=(--cpu)
  OPTIONS+=(--num-workers 0)
fi
text=$OUT/features/text image=$OUT/features/image

features() {
  run mclip-features --model "$TEACHER" --captions "$ENGLISH" --space pooled --output "$text"
  run mclip-features --model "$TEACHER" --images "$PHOTOS" --space pooled --output "$image"
}
stage() { # stage NAME DATA TASK OPTION...: what both trainings have in common
  local name=$1 data=$2 task=$3
  shift 3
  train "$OUT/$name" "$data" --user-dir "$PLUGIN" --task "$task" --criterion "$task" --langs "$LANGS" \
    --max-caption-tokens 77 --arch "$ARCH" --text-encoder "$XLMR" --teacher "$TEACHER" --optimizer fused_adamw \
    --lr-scheduler polynomial_decay --no-epoch-checkpoints --seed "$SEED" --log-format json "$@" "${PRECISION[@]}" \
    "${OPTIONS[@]}"
}
teach() {
  stage teach "$TEXTS" distillation --text-features "$text" --lr 1e-4 --weight-decay 1e-4 --warmup-updates 1000 \
    --total-num-update "${TEACH_UPDATES:-100000}" --batch-size "$TEACH_BATCH" "${TEACH_LENGTH[@]}"
}
# The image tower is frozen, so its states are computed once; the projections and the scale are trained.
align() {
  stage align "$CAPTIONS" image_text --text-features "$text" --image-features "$image" --train-projections \
    --train-scale --finetune-from-model "$OUT/teach/checkpoint_best.pt" --lr 5e-5 --weight-decay 0.1 \
    --warmup-updates 100 --total-num-update "${ALIGN_UPDATES:-50000}" --batch-size "$ALIGN_BATCH" \
    --valid-retrieval --best-checkpoint-metric mean_recall --maximize-best-checkpoint-metric "${ALIGN_LENGTH[@]}"
}
evaluate() {
  local images=()
  ((${#IMAGES[@]} == 0)) || images=(--images-root "${IMAGES[@]}")
  ((${#IMAGE_FEATURES[@]} == 0)) || images=(--features "${IMAGE_FEATURES[@]}")
  run mclip-evaluate "${BENCHMARKS[@]}" --model "$OUT/align/checkpoint_best.pt" --output "$OUT/evaluation" \
    "${images[@]}" --published
}
export_model() {
  made "$OUT/altclip" mclip-export "$OUT/align/checkpoint_best.pt" --teacher "$TEACHER" --format altclip --output "$OUT/altclip"
}

for name in "${STAGES[@]}"; do
  say "$name"
  case $name in
    export) export_model ;;
    *) "$name" ;;
  esac
done
