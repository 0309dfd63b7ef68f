#!/usr/bin/env bash
# mCLIP as published: MTE in two stages, extraction, TriKD, fine-tuning, evaluation.
#
#   examples/mclip/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of mte1 mte2 extract trikd finetune evaluate (default: all). A stage that has its result is skipped; an
# interrupted one continues from its last checkpoint.
#
#   --dry-run   print the commands without running them
#   --tiny      a few updates of tiny models on the CPU, to check that data and stages fit together
#   --gpus N    processes on this machine, through torchrun (default: 1); for several machines see slurm.sbatch
#
# Paths and settings are environment variables; override any of them:
#   XLMR=xlmr.base       fairseq's archive: model.pt, dict.txt, sentencepiece.bpe.model
#   MT=data/mt/bin       parallel text from preprocess/parallel.sh, English with each of PAIRS
#   PAIRS=cs,de,es,ja,ru,zh
#   CAPTIONS=data/cc3m   output of preprocess/captions.sh with --teacher: bin/ and features/{image,text}
#   FINETUNE=data/multi30k   the same for the set to fine-tune on, in FINETUNE_LANGS=en,de,fr,cs (one, or all). For
#                        several sets, also name their common features:
#                        FINETUNE="data/coco-en data/coco-zh" FINETUNE_FEATURES=data/coco
#   TEACHER=openai/clip-vit-base-patch32
#   BENCHMARKS="data/sets/multi30k-task1:test_2016_flickr data/sets/xtd10"   from preprocess/evaluation.sh;
#                        IMAGES="data/flickr30k data/coco", their image folder, one for all or one each,
#                        or FEATURES="...", directories of their features
#   OUT=runs/mclip   SEED=16   PRECISION="--fp16 --fp16-no-flatten-grads"
#   MTE1_UPDATES=400000 MTE2_UPDATES=160000 TRIKD_EPOCHS=15 FINETUNE_EPOCHS=30
#   ENCODER=   an archive to use in TriKD instead of the one MTE makes (XLMR for the ablation without MTE)
#   ARCH=mclip_base   MTE_ARCH=mte_base   architectures
#   TRIKD_OPTIONS=       further options of TriKD and fine-tuning
#   OPTIONS=             further options of all trainings, such as "--tensorboard-logdir runs/tb"
#   LAUNCHER=            command that starts the processes of a training, as slurm.sbatch sets it
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

stages "mte1 mte2 extract trikd finetune evaluate" "$@"
[[ ${FINETUNE:-} != *" "* || -n ${FINETUNE_FEATURES:-} ]] ||
  fail "FINETUNE names several sets; set FINETUNE_FEATURES too"

XLMR=${XLMR:-xlmr.base} MT=${MT:-data/mt/bin} PAIRS=${PAIRS:-cs,de,es,ja,ru,zh} CAPTIONS=${CAPTIONS:-data/cc3m}
FINETUNE=${FINETUNE:-data/multi30k} FINETUNE_LANGS=${FINETUNE_LANGS:-en,de,fr,cs}
TEACHER=${TEACHER:-openai/clip-vit-base-patch32} OUT=${OUT:-runs/mclip} SEED=${SEED:-16}
ARCH=${ARCH:-mclip_base} MTE_ARCH=${MTE_ARCH:-mte_base} ENCODER=${ENCODER:-$OUT/encoder}
read -ra PRECISION <<< "${PRECISION---fp16 --fp16-no-flatten-grads}"
read -ra TRIKD_OPTIONS <<< "${TRIKD_OPTIONS:-}"
read -ra OPTIONS <<< "${OPTIONS:-}"
read -ra BENCHMARKS <<< "${BENCHMARKS:-data/sets/multi30k-task1:test_2016_flickr data/sets/xtd10}"
read -ra IMAGES <<< "${IMAGES:-}"
read -ra FEATURES <<< "${FEATURES:-}"
MTE1_LENGTH=(--max-update "${MTE1_UPDATES:-400000}") MTE2_LENGTH=(--max-update "${MTE2_UPDATES:-160000}")
TRIKD_LENGTH=(--max-epoch "${TRIKD_EPOCHS:-15}") FINETUNE_LENGTH=(--max-epoch "${FINETUNE_EPOCHS:-30}")
BATCH=2048 FINETUNE_BATCH=128 DROPOUT=0.3
COMMON=(--user-dir "$PLUGIN" --seed "$SEED" --log-format json --log-interval 100 --no-epoch-checkpoints)
COMMON+=("${OPTIONS[@]}")
if ((TINY)); then
  MTE1_LENGTH=(--max-update 2) MTE2_LENGTH=(--max-update 2)
  TRIKD_LENGTH=(--max-update 2) FINETUNE_LENGTH=(--max-update 2)
  BATCH=16 FINETUNE_BATCH=16 DROPOUT=0 ARCH=mclip_tiny MTE_ARCH=mte_tiny PRECISION=(--cpu)
  COMMON+=(--num-workers 0)
fi

pairs() { local list=(); for lang in ${PAIRS//,/ }; do list+=("en-$lang"); done; local IFS=,; echo "${list[*]}"; }

mte() { # mte NAME OPTION...: what both stages have in common
  local name=$1
  shift
  train "$OUT/$name" "$MT" --task mte --langs "en,$PAIRS" --lang-pairs "$(pairs)" --both-directions \
    --sampling-temperature 5 --truncate --arch "$MTE_ARCH" --text-encoder "$XLMR" --criterion mte --dropout 0.1 \
    --optimizer fused_adamw --adamw-betas "(0.9, 0.98)" --lr-scheduler inverse_sqrt --clip-norm 2 "$@" \
    "${COMMON[@]}" "${PRECISION[@]}"
}
mte1() {
  mte mte1 --freeze-text all --lr 5e-4 --warmup-updates 4000 --warmup-init-lr 1e-7 --max-tokens 4096 "${MTE1_LENGTH[@]}"
}
mte2() {
  mte mte2 --freeze-text embeddings --finetune-from-model "$OUT/mte1/checkpoint_best.pt" --contrastive-weight 2 \
    --contrastive-temperature 0.1 --lr 1e-4 --warmup-updates 10 --warmup-init-lr 2e-5 --max-tokens 1024 \
    --update-freq 4 "${MTE2_LENGTH[@]}"
}
extract() {
  made "$OUT/encoder" mclip-extract-mte "$OUT/mte2/checkpoint_best.pt" --tokenizer "$XLMR" --output "$OUT/encoder"
}
projectors() { # projectors NAME BIN FEATURES OPTION...: what TriKD and fine-tuning have in common
  local name=$1 data=$2 features=$3
  shift 3
  train "$OUT/$name" "$data" --task trikd --image-features "$features/image" --text-features "$features/text" \
    --teacher "$TEACHER" --arch "$ARCH" --text-encoder "$ENCODER" --criterion trikd --dropout "$DROPOUT" \
    --optimizer mclip_lamb --lr 1e-2 --lr-scheduler inverse_sqrt --warmup-updates 500 --warmup-init-lr 1e-7 \
    --clip-norm 2 --valid-retrieval --best-checkpoint-metric mean_recall --maximize-best-checkpoint-metric \
    "${TRIKD_OPTIONS[@]}" "$@" "${COMMON[@]}" "${PRECISION[@]}"
}
trikd() {
  projectors trikd "$CAPTIONS/bin" "$CAPTIONS/features" --langs en --weight-decay 0.01 --batch-size "$BATCH" \
    --validate-interval-updates 250 "${TRIKD_LENGTH[@]}"
}
finetune() {
  local folders bins
  read -ra folders <<< "$FINETUNE"
  bins=$(IFS=: && echo "${folders[*]/%//bin}")
  projectors "finetune-${FINETUNE_LANGS//,/-}" "$bins" "${FINETUNE_FEATURES:-$FINETUNE/features}" \
    --langs "$FINETUNE_LANGS" --weight-decay 0.001 --positives image \
    --finetune-from-model "$OUT/trikd/checkpoint_best.pt" --batch-size "$FINETUNE_BATCH" "${FINETUNE_LENGTH[@]}"
}
evaluate() {
  local models=() names=() name images=() features=()
  ((${#IMAGES[@]} == 0)) || images=(--images-root "${IMAGES[@]}")
  ((${#FEATURES[@]} == 0)) || features=(--features "${FEATURES[@]}")
  for name in trikd "finetune-${FINETUNE_LANGS//,/-}"; do
    ((DRY)) || [[ -e $OUT/$name/checkpoint_best.pt ]] || continue
    models+=("$OUT/$name/checkpoint_best.pt")
    names+=("$name")
  done
  ((${#models[@]})) || fail "$OUT holds no trained model; run the other stages before evaluate"
  run mclip-evaluate "${BENCHMARKS[@]}" --model "${models[@]}" --name "${names[@]}" --output "$OUT/evaluation" \
    --cache "$OUT/cache" "${images[@]}" "${features[@]}" --published
}

for stage in "${STAGES[@]}"; do
  say "$stage"
  "$stage"
done
