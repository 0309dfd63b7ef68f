#!/usr/bin/env bash
# M-CLIP as published: a multilingual text encoder learns the final text features of a CLIP, from text alone.
#
#   examples/m_clip/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of features train evaluate export (default: all). A stage that has its result is skipped; an interrupted
# one continues from its last checkpoint.
#
#   --dry-run   print the commands without running them
#   --tiny      a few updates of a tiny model on the CPU, to check that data and stages fit together
#   --gpus N    processes on this machine, through torchrun (default: 1); on several machines:
#               RECIPE=m_clip sbatch examples/mclip/slurm.sbatch
#
# Paths and settings are environment variables; override any of them:
#   XLMR=xlmr.large      fairseq's archive: model.pt, dict.txt, sentencepiece.bpe.model; or a directory of transformers
#                        (LaBSE, mBERT, DistilmBERT), with TEXTS made by its tokenizer
#   TEXTS=data/m-clip/bin    captions in LANGS, binarised, with ids files whose second column names the English caption
#   ENGLISH=data/m-clip/en.tsv   the English captions: id, tab, caption
#   LANGS=de,es,fr,...   TEACHER=openai/clip-vit-large-patch14
#   FEATURES=            features of ENGLISH that exist already
#   BENCHMARKS="data/sets/xtd10"  IMAGES="data/coco"   for evaluate; or IMAGE_FEATURES="..."
#   OUT=runs/m_clip   SEED=16   UPDATES=100000   BATCH=256 (per GPU; 2,048 on eight)
#   ARCH=m_clip_large    PRECISION="--fp16 --fp16-no-flatten-grads"   OPTIONS=   further options of the training
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
stages "features train evaluate export" "$@"

XLMR=${XLMR:-xlmr.large} TEXTS=${TEXTS:-data/m-clip/bin} ENGLISH=${ENGLISH:-data/m-clip/en.tsv}
LANGS=${LANGS:-de,es,fr,it,ja,ko,pl,ru,tr,zh} TEACHER=${TEACHER:-openai/clip-vit-large-patch14}
OUT=${OUT:-runs/m_clip} SEED=${SEED:-16} ARCH=${ARCH:-m_clip_large} BATCH=${BATCH:-256} UPDATES=${UPDATES:-100000}
FEATURES=${FEATURES:-$OUT/features/text}
read -ra PRECISION <<< "${PRECISION---fp16 --fp16-no-flatten-grads}"
read -ra OPTIONS <<< "${OPTIONS:-}"
read -ra BENCHMARKS <<< "${BENCHMARKS:-data/sets/xtd10}"
read -ra IMAGES <<< "${IMAGES:-}"
read -ra IMAGE_FEATURES <<< "${IMAGE_FEATURES:-}"
if ((TINY)); then
  UPDATES=2 BATCH=16 ARCH=teacher_learning_tiny PRECISION=(--cpu)
  OPTIONS+=(--num-workers 0)
fi
best=$OUT/train/checkpoint_best.pt

features() {
  run mclip-features --model "$TEACHER" --captions "$ENGLISH" --output "$FEATURES"
}
# Linear warm-up, then a decay so slow (over 100 million updates) that the rate stays as it is.
train_student() {
  train "$OUT/train" "$TEXTS" --user-dir "$PLUGIN" --task distillation --langs "$LANGS" --max-caption-tokens 32 \
    --text-features "$FEATURES" --teacher "$TEACHER" --arch "$ARCH" --text-encoder "$XLMR" --criterion distillation \
    --optimizer fused_adamw --lr 1e-5 --lr-scheduler polynomial_decay --warmup-updates 1000 \
    --total-num-update 100000000 --batch-size "$BATCH" --max-update "$UPDATES" --validate-interval-updates 1000 \
    --save-interval-updates 1000 --keep-interval-updates 1 --no-epoch-checkpoints --seed "$SEED" --log-format json \
    "${PRECISION[@]}" "${OPTIONS[@]}"
}
evaluate() {
  local images=()
  ((${#IMAGES[@]} == 0)) || images=(--images-root "${IMAGES[@]}")
  ((${#IMAGE_FEATURES[@]} == 0)) || images=(--features "${IMAGE_FEATURES[@]}")
  run mclip-evaluate "${BENCHMARKS[@]}" --model "$best" --output "$OUT/evaluation" "${images[@]}" --published
}
export_model() {
  made "$OUT/m-clip" mclip-export "$best" --format m-clip --output "$OUT/m-clip"
}

for stage in "${STAGES[@]}"; do
  say "$stage"
  case $stage in
    train) train_student ;;
    export) export_model ;;
    *) "$stage" ;;
  esac
done
