#!/usr/bin/env bash
# Contrastive Tension as published: two encoders of one start are tuned on raw sentences; the better one is kept.
#
#   examples/contrastive_tension/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of train evaluate export (default: all). A stage that has its result is skipped; an interrupted one
# continues from its last checkpoint.
#
#   --dry-run   print the commands without running them
#   --tiny      a few updates of a tiny model on the CPU, to check that data and stages fit together
#   --gpus N    processes on this machine, through torchrun (default: 1). One is published: a batch is two groups. In
#               SLURM: RECIPE=contrastive_tension GPUS_PER_NODE=1 sbatch --nodes 1 --gpus-per-node 1 \
#               examples/mclip/slurm.sbatch
#
# Paths and settings are environment variables; override any of them:
#   XLMR=xlmr.base       fairseq's archive: model.pt, dict.txt, sentencepiece.bpe.model
#   SENTENCES=data/sentences/bin   train.LANG and valid.LANG, binarised, in LANGS=en
#   STS=data/sets/sts/stsb.valid.en.tsv   from preprocess/sts.py: the better encoder is the one with the higher Spearman
#   BENCHMARKS=data/sets/sts     for evaluate
#   OUT=runs/contrastive_tension   SEED=16   UPDATES=5000   GROUPS_PER_BATCH=2   ARCH=contrastive_tension_base
#   PRECISION="--fp16 --fp16-no-flatten-grads"   OPTIONS=   further options of the training
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
stages "train evaluate export" "$@"

XLMR=${XLMR:-xlmr.base} SENTENCES=${SENTENCES:-data/sentences/bin} LANGS=${LANGS:-en}
STS=${STS:-data/sets/sts/stsb.valid.en.tsv} OUT=${OUT:-runs/contrastive_tension} SEED=${SEED:-16}
ARCH=${ARCH:-contrastive_tension_base} UPDATES=${UPDATES:-5000} GROUPS_PER_BATCH=${GROUPS_PER_BATCH:-2} EVERY=500
read -ra PRECISION <<< "${PRECISION---fp16 --fp16-no-flatten-grads}"
read -ra OPTIONS <<< "${OPTIONS:-}"
read -ra BENCHMARKS <<< "${BENCHMARKS:-data/sets/sts}"
if ((TINY)); then
  UPDATES=2 EVERY=1 ARCH=contrastive_tension_tiny PRECISION=(--cpu)
  OPTIONS+=(--num-workers 0)
fi
best=$OUT/train/checkpoint_best.pt

# The published rates: 501 updates at 1e-5, then 500 each at 8e-6, 6e-6 and 4e-6, then 2e-6.
train_encoders() {
  train "$OUT/train" "$SENTENCES" --user-dir "$PLUGIN" --task contrastive_tension --criterion contrastive_tension \
    --langs "$LANGS" --arch "$ARCH" --text-encoder "$XLMR" --optimizer rmsprop --lr 1e-5 --lr-scheduler manual \
    --update2lr "{'1': 1e-5, '501': 8e-6, '1001': 6e-6, '1501': 4e-6, '2001': 2e-6}" \
    --batch-size "$GROUPS_PER_BATCH" --required-batch-size-multiple 1 --group-negatives 7 --max-update "$UPDATES" \
    --valid-sts "$STS" --validate-interval-updates "$EVERY" --save-interval-updates "$EVERY" --keep-interval-updates 1 \
    --best-checkpoint-metric sts_spearman --maximize-best-checkpoint-metric --no-epoch-checkpoints --seed "$SEED" \
    --log-format json "${PRECISION[@]}" "${OPTIONS[@]}"
}
evaluate() {
  run mclip-evaluate "${BENCHMARKS[@]}" --model "$best" --output "$OUT/evaluation" --published
}
export_model() {
  made "$OUT/sentence-encoder" mclip-export "$best" --format sentence-transformers --output "$OUT/sentence-encoder"
}

for stage in "${STAGES[@]}"; do
  say "$stage"
  case $stage in
    train) train_encoders ;;
    export) export_model ;;
    *) "$stage" ;;
  esac
done
