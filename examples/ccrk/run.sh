#!/usr/bin/env bash
# CCRK as published: pre-training with 1-to-K contrast, fine-tuning for retrieval, evaluation with re-ranking.
#
#   examples/ccrk/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of pretrain finetune fewshot evaluate (default: pretrain finetune evaluate). A stage that has its result
# is skipped; an interrupted one continues from its last checkpoint.
#
#   --dry-run   print the commands without running them
#   --tiny      a few updates of tiny models on the CPU, to check that data and stages fit together
#   --gpus N    processes on this machine, through torchrun (default: 1)
#
# Paths and settings are environment variables; override any of them:
#   XLMR=xlmr.large      fairseq's archive: model.pt, dict.txt, sentencepiece.bpe.model
#   TEXT_LAYERS=1,3,...,23   layers of it to keep: the first half encodes texts, the second half sees the image, too
#   SWIN=microsoft/swin-base-patch4-window7-224-in22k
#   PARALLEL=data/cc2m   output of preprocess/captions.sh with ccrk: bin/; several sets, separated by blanks, make the
#                        3M set (Conceptual Captions, SBU, Visual Genome, COCO)
#   PARALLEL_IMAGES=data/images   folder of their images
#   LANGUAGES=zh,en,de,fr,ja,cs,id,es,ru,tr   six: zh,ja,en,de,fr,cs
#   CAPTIONS_PER_IMAGE=4 languages drawn for each image and epoch; 0: all
#   FINETUNE=data/multi30k   output of preprocess/captions.sh for the set to fine-tune on, and its images:
#   FINETUNE_IMAGES=data/flickr30k
#   FINETUNE_LANGS=en    one language, or en,de,fr,cs for all
#   FEWSHOT=data/xflickrco-5/bin   binarised few-shot captions, as xflickrco.py --shots N writes them, in
#   FEWSHOT_LANG=de      one language; images in FINETUNE_IMAGES. The stage continues from the fine-tuned model.
#   BENCHMARKS="data/sets/multi30k-task1:test_2016_flickr data/sets/xflickrco"   from preprocess/evaluation.sh;
#                        IMAGES="data/flickr30k data/xflickrco", their image folder, one for all or one each
#   RERANK=128           candidates per query (COCO: 256)
#   OUT=runs/ccrk   SEED=42   PRECISION=--amp
#   PRETRAIN_EPOCHS=30 FINETUNE_EPOCHS=10 FEWSHOT_EPOCHS=60
#   PRETRAIN_UPDATES=436830   all updates of the pre-training, over which the learning rate falls: images / 128 x epochs
#   FINETUNE_UPDATES=4532     the same for fine-tuning: captions / 64 x epochs
#   OPTIONS=             further options of all trainings
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

stages "pretrain finetune [fewshot] evaluate" "$@"

XLMR=${XLMR:-xlmr.large} TEXT_LAYERS=${TEXT_LAYERS-1,3,...,23}
SWIN=${SWIN-microsoft/swin-base-patch4-window7-224-in22k}
PARALLEL_IMAGES=${PARALLEL_IMAGES:-data/images} LANGUAGES=${LANGUAGES:-zh,en,de,fr,ja,cs,id,es,ru,tr}
CAPTIONS_PER_IMAGE=${CAPTIONS_PER_IMAGE:-4}
FINETUNE=${FINETUNE:-data/multi30k} FINETUNE_IMAGES=${FINETUNE_IMAGES:-data/flickr30k}
FINETUNE_LANGS=${FINETUNE_LANGS:-en} FEWSHOT_LANG=${FEWSHOT_LANG:-de} FEWSHOT=${FEWSHOT:-data/xflickrco-5/bin}
RERANK=${RERANK:-128} OUT=${OUT:-runs/ccrk} SEED=${SEED:-42}
PRETRAIN_UPDATES=${PRETRAIN_UPDATES:-436830} FINETUNE_UPDATES=${FINETUNE_UPDATES:-4532}
read -ra PARALLEL <<< "${PARALLEL:-data/cc2m}"
read -ra PRECISION <<< "${PRECISION---amp}"
read -ra OPTIONS <<< "${OPTIONS:-}"
read -ra BENCHMARKS <<< "${BENCHMARKS:-data/sets/multi30k-task1:test_2016_flickr data/sets/xflickrco}"
read -ra IMAGES <<< "${IMAGES:-data/flickr30k data/xflickrco}"
PRETRAIN_LENGTH=(--max-epoch "${PRETRAIN_EPOCHS:-30}") FINETUNE_LENGTH=(--max-epoch "${FINETUNE_EPOCHS:-10}")
FEWSHOT_LENGTH=(--max-epoch "${FEWSHOT_EPOCHS:-60}")
MODEL=(--arch ccrk_base --text-tokenizer "$XLMR") START=(--text-encoder "$XLMR" --text-layers "$TEXT_LAYERS")
[[ -z $SWIN ]] || START+=(--image-encoder "$SWIN")
LARGE=(--image-size 384 --image-window 12)
BATCH=128 FINETUNE_BATCH=64
COMMON=(--user-dir "$PLUGIN" --seed "$SEED" --log-format json --log-interval 100 --no-epoch-checkpoints)
COMMON+=("${OPTIONS[@]}")
if ((TINY)); then
  PRETRAIN_LENGTH=(--max-update 2) FINETUNE_LENGTH=(--max-update 2) FEWSHOT_LENGTH=(--max-update 2)
  BATCH=8 FINETUNE_BATCH=8 PRECISION=(--cpu) START=() LARGE=(--image-size 40 --image-window 5)
  PRETRAIN_UPDATES=4 FINETUNE_UPDATES=4 RERANK=${RERANK_TINY:-4}
  MODEL=(--arch ccrk_tiny --text-tokenizer "$XLMR")
  COMMON+=(--num-workers 0)
fi
BATCH=$((BATCH / GPUS)) FINETUNE_BATCH=$((FINETUNE_BATCH / GPUS)) # published batches are of all GPUs together

ccrk() { # ccrk NAME DATA OPTION...: what all trainings have in common
  local name=$1 data=$2
  shift 2
  train "$OUT/$name" "$data" --task ccrk "${MODEL[@]}" --criterion ccrk --optimizer fused_adamw \
    --adamw-betas "(0.9, 0.98)" --weight-decay 0.01 --lr-scheduler polynomial_decay --valid-retrieval \
    --best-checkpoint-metric mean_recall --maximize-best-checkpoint-metric "$@" "${COMMON[@]}" "${PRECISION[@]}"
}
pretrain() {
  local bins
  bins=$(IFS=: && echo "${PARALLEL[*]/%//bin}")
  ccrk pretrain "$bins" "${START[@]}" --mode pretrain --langs "$LANGUAGES" --image-root "$PARALLEL_IMAGES" \
    --captions-per-image "$CAPTIONS_PER_IMAGE" --crop-area 0.2 --batch-size "$BATCH" --lr 1e-4 \
    --fresh-lr-multiplier 2 --warmup-updates "$((PRETRAIN_UPDATES * 3006 / 100000))" \
    --total-num-update "$PRETRAIN_UPDATES" --clip-norm 1 "${PRETRAIN_LENGTH[@]}"
}
finetune() {
  ccrk "finetune-${FINETUNE_LANGS//,/-}" "$FINETUNE/bin" "${LARGE[@]}" --mode finetune --langs "$FINETUNE_LANGS" \
    --image-root "$FINETUNE_IMAGES" --finetune-from-model "$OUT/pretrain/checkpoint_last.pt" --crop-area 0.5 \
    --batch-size "$FINETUNE_BATCH" --lr 3e-5 --warmup-updates "$((FINETUNE_UPDATES / 10))" \
    --total-num-update "$FINETUNE_UPDATES" "${FINETUNE_LENGTH[@]}"
}
fewshot() { # the published command looks at the test set to choose an epoch; here the last one is kept
  ccrk "fewshot-$FEWSHOT_LANG" "$FEWSHOT" "${LARGE[@]}" --mode finetune --langs "$FEWSHOT_LANG" \
    --image-root "$FINETUNE_IMAGES" --crop-area 0.5 --max-caption-tokens 80 --disable-validation \
    --finetune-from-model "$OUT/finetune-${FINETUNE_LANGS//,/-}/checkpoint_best.pt" --batch-size "$FINETUNE_BATCH" \
    --lr 1e-5 --total-num-update "$FINETUNE_UPDATES" "${FEWSHOT_LENGTH[@]}"
}
evaluate() {
  local models=() names=() name file
  for name in pretrain "finetune-${FINETUNE_LANGS//,/-}" "fewshot-$FEWSHOT_LANG"; do
    file=$OUT/$name/checkpoint_best.pt
    [[ -e $file ]] || file=$OUT/$name/checkpoint_last.pt
    ((DRY)) || [[ -e $file ]] || continue
    models+=("$file")
    names+=("$name")
  done
  ((${#models[@]})) || fail "$OUT holds no trained model; run the other stages before evaluate"
  run mclip-evaluate "${BENCHMARKS[@]}" --model "${models[@]}" --name "${names[@]}" --output "$OUT/evaluation" \
    --images-root "${IMAGES[@]}" --rerank "$RERANK" --batch-size 64
}

for stage in "${STAGES[@]}"; do
  say "$stage"
  "$stage"
done
