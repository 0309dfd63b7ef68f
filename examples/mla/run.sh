#!/usr/bin/env bash
# MLA as published: NLT, LE, fine-tuning on English, fine-tuning on all languages, evaluation.
#
#   examples/mla/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of data nlt le finetune-en finetune-all evaluate (default: all). A stage that has its result is skipped;
# an interrupted one continues from its last checkpoint.
#
#   --dry-run   print the commands without running them
#   --tiny      a few updates of tiny acquirers on the CPU, to check that data and stages fit together
#   --gpus N    processes on this machine, through torchrun (default: 1; the published runs used one). In SLURM:
#               RECIPE=mla GPUS_PER_NODE=1 sbatch --nodes 1 --gpus-per-node 1 examples/mclip/slurm.sbatch
#
# Paths and settings are environment variables; override any of them:
#   CAPTIONS=data/cc300k    text/{train,valid}.LANG with their .ids (image id, tab, id of the English text) in each of
#                           LANGS, and features/{image,text} of mclip-features, both with TEACHER
#   LANGS=de,fr,cs,zh,ja    the languages that CLIP acquires
#   SET=multi30k            or coco: the set to fine-tune and evaluate on, which gives the defaults of
#     FINETUNE              data/multi30k | data/coco: text/ of preprocess/captions.sh in
#     FINETUNE_LANGS        en,de,fr,cs | en,ja,zh, with the images in
#     IMAGES                data/flickr30k | data/coco-images
#     FINETUNE_EN_UPDATES   5665 | 22138: five epochs of 145,000 | 566,747 captions
#     BENCHMARKS            of preprocess/evaluation.sh: five captions of an image in en and de, one in fr and cs |
#                           en, and ja by the mean over folds, and zh; EVALUATE_IMAGES, their image folder (IMAGES)
#   TEACHER=openai/clip-vit-base-patch32
#   TOKENIZER=bert-base-multilingual-cased   for all languages but English, and whose word vectors start the table
#   EMBEDDING=$TOKENIZER    other word vectors; empty: random
#   OUT=runs/mla   SEED=42   PRECISION="--fp16 --fp16-no-flatten-grads"
#   OPTIMIZER=fused_adamw   or bert_adam, the released one
#   NLT_UPDATES=117150 LE_UPDATES=11715 FINETUNE_ALL_UPDATES=10000
#   OPTIONS=                further options of all trainings
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

stages "data nlt le finetune-en finetune-all evaluate" "$@"

CAPTIONS=${CAPTIONS:-data/cc300k} LANGS=${LANGS:-de,fr,cs,zh,ja}
case ${SET:=multi30k} in
  multi30k)
    PREFIX='' FINETUNE=${FINETUNE:-data/multi30k} FINETUNE_LANGS=${FINETUNE_LANGS:-en,de,fr,cs}
    IMAGES=${IMAGES:-data/flickr30k} FINETUNE_EN=${FINETUNE_EN_UPDATES:-5665}
    TESTS="data/sets/multi30k-task2:test_2016_flickr data/sets/multi30k-task1:test_2016_flickr"
    ;;
  coco)
    PREFIX=coco- FINETUNE=${FINETUNE:-data/coco} FINETUNE_LANGS=${FINETUNE_LANGS:-en,ja,zh}
    IMAGES=${IMAGES:-data/coco-images} FINETUNE_EN=${FINETUNE_EN_UPDATES:-22138}
    TESTS="data/sets/coco-en data/sets/coco-ja data/sets/coco-zh"
    ;;
  *) fail "SET=$SET: give multi30k or coco" ;;
esac
TEACHER=${TEACHER:-openai/clip-vit-base-patch32} TOKENIZER=${TOKENIZER:-bert-base-multilingual-cased}
EMBEDDING=${EMBEDDING-$TOKENIZER} OUT=${OUT:-runs/mla} SEED=${SEED:-42} OPTIMIZER=${OPTIMIZER:-fused_adamw}
read -ra PRECISION <<< "${PRECISION---fp16 --fp16-no-flatten-grads}"
read -ra OPTIONS <<< "${OPTIONS:-}"
read -ra BENCHMARKS <<< "${BENCHMARKS:-$TESTS}"
read -ra EVALUATE_IMAGES <<< "${EVALUATE_IMAGES:-$IMAGES}"
NLT=${NLT_UPDATES:-117150} LE=${LE_UPDATES:-11715}
FINETUNE_ALL=${FINETUNE_ALL_UPDATES:-10000}
ARCH=mla_base BATCH=128
COMMON=(--user-dir "$PLUGIN" --seed "$SEED" --log-format json --log-interval 100 --no-epoch-checkpoints)
COMMON+=("${OPTIONS[@]}")
if ((TINY)); then
  NLT=2 LE=2 FINETUNE_EN=2 FINETUNE_ALL=2 ARCH=mla_tiny BATCH=16 PRECISION=(--cpu)
  COMMON+=(--num-workers 0)
fi
case $OPTIMIZER in
  fused_adamw) ADAM=(--optimizer fused_adamw --adamw-betas "(0.9, 0.98)" --adamw-eps 1e-6) ;;
  bert_adam) ADAM=(--optimizer bert_adam) ;;
  *) fail "OPTIMIZER=$OPTIMIZER: give fused_adamw or bert_adam" ;;
esac
# The languages of FINETUNE_LANGS but English, separated by spaces.
OTHERS=" ${FINETUNE_LANGS//,/ } "
OTHERS=${OTHERS/ en / }

ids() { # ids TEXT BIN LANG...: copy the ids of captions beside their tokens
  local text=$1 bin=$2 lang
  shift 2
  for lang in "$@"; do run cp "$text/train.$lang.ids" "$text/valid.$lang.ids" "$bin/"; done
}
tokens() { # tokens TOKENIZER TEXT BIN LANG...: the ids of a Hugging Face tokenizer
  local tokenizer=$1 text=$2 bin=$3 now
  shift 3
  now=$(inputs "$tokenizer" "$text" "$@")
  if [[ -e $bin/complete && $(< "$bin/complete") == "$now" ]]; then
    echo "$bin exists"
    return
  fi
  ((DRY)) || rm -f "$bin/complete"
  run "$PYTHON" "$PREPROCESS/binarise.py" --tokenizer "$tokenizer" --pieces "$text" --splits train valid \
    --captions "$@" --output "$bin"
  ids "$text" "$bin" "$@"
  ((DRY)) || echo "$now" > "$bin/complete"
}
data() {
  # shellcheck disable=SC2086 # a word per language
  tokens "$TOKENIZER" "$CAPTIONS/text" "$OUT/data/captions" ${LANGS//,/ }
  tokens "$TEACHER" "$FINETUNE/text" "$OUT/data/${PREFIX}finetune-english" en
  # shellcheck disable=SC2086
  tokens "$TOKENIZER" "$FINETUNE/text" "$OUT/data/${PREFIX}finetune-others" $OTHERS
}
stage() { # stage NAME DATA UPDATES LR OPTION...: what all stages have in common
  local name=$1 data=$2 updates=$3 lr=$4
  shift 4
  train "$OUT/$name" "$data" --arch "$ARCH" --teacher "$TEACHER" --acquirers "$LANGS" --text-tokenizer "$TOKENIZER" \
    --max-caption-tokens 77 --sampling-temperature inf --batch-size "$BATCH" "${ADAM[@]}" --weight-decay 0.2 \
    --lr "$lr" --lr-scheduler warmup_cosine --max-update "$updates" --valid-retrieval \
    --best-checkpoint-metric mean_recall --maximize-best-checkpoint-metric "$@" "${COMMON[@]}" "${PRECISION[@]}"
}
nlt() {
  stage nlt "$OUT/data/captions" "$NLT" 1e-4 --task distillation --criterion distillation --langs "$LANGS" \
    --text-features "$CAPTIONS/features/text" --image-features "$CAPTIONS/features/image" \
    ${EMBEDDING:+--embedding "$EMBEDDING"} --validate-interval-updates 3000
}
le() {
  stage le "$OUT/data/captions" "$LE" 3e-6 --task image_text --criterion image_text --langs "$LANGS" \
    --image-features "$CAPTIONS/features/image" --base "$OUT/nlt/checkpoint_best.pt" --validate-interval-updates 500
}
finetune() { # finetune NAME DATA UPDATES LANGS PARTS BASE
  stage "$1" "$2" "$3" 3e-6 --task image_text --criterion image_text --langs "$4" --train-parts "$5" --base "$6" \
    --image-root "$IMAGES" --validate-interval-updates 500
}
finetune-en() {
  finetune "${PREFIX}finetune-en" "$OUT/data/${PREFIX}finetune-english" "$FINETUNE_EN" en clip \
    "$OUT/le/checkpoint_best.pt"
}
finetune-all() {
  finetune "${PREFIX}finetune-all" "$OUT/data/${PREFIX}finetune-english:$OUT/data/${PREFIX}finetune-others" \
    "$FINETUNE_ALL" "$FINETUNE_LANGS" acquirers,embedding,linear,clip "$OUT/${PREFIX}finetune-en/checkpoint_best.pt"
}
evaluate() { # le is zero-shot
  local models=() names=() name
  for name in le "${PREFIX}finetune-en" "${PREFIX}finetune-all"; do
    ((DRY)) || [[ -e $OUT/$name/checkpoint_best.pt ]] || continue
    models+=("$OUT/$name/checkpoint_best.pt")
    names+=("$name")
  done
  ((${#models[@]})) || fail "$OUT holds no trained model; run the other stages before evaluate"
  run mclip-evaluate "${BENCHMARKS[@]}" --model "${models[@]}" --name "${names[@]}" --protocol caption_max \
    --output "$OUT/evaluation" --cache "$OUT/cache" --images-root "${EVALUATE_IMAGES[@]}"
}

for stage in "${STAGES[@]}"; do
  say "$stage"
  "$stage"
done
