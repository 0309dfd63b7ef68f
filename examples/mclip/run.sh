#!/usr/bin/env bash
# mCLIP as published: MTE in two stages, extraction, TriKD, fine-tuning, evaluation.
#
#   examples/mclip/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of mte1 mte2 extract trikd finetune evaluate; all of them where none is named. A stage whose result is
# there is not repeated; one that was interrupted goes on from its last checkpoint.
#
#   --dry-run   print the commands and run none
#   --tiny      a few updates of tiny models on the CPU, to see that data and stages fit together
#   --gpus N    processes on this machine, through torchrun (default 1); several machines: see slurm.sbatch
#
# What lies where is told by variables, all of which may be set:
#   XLMR=xlmr.base       fairseq's archive: model.pt, dict.txt, sentencepiece.bpe.model
#   MT=data/mt/bin       parallel text of preprocess/parallel.sh, English with each of PAIRS
#   PAIRS=cs,de,es,ja,ru,zh
#   CAPTIONS=data/cc3m   of preprocess/captions.sh with --teacher: bin/ and features/{image,text}
#   FINETUNE=data/multi30k   the same of the set to fine-tune on; FINETUNE_LANGS=en,de,fr,cs (one, or all); several sets
#                        with their features together: FINETUNE="data/coco-en data/coco-zh" FINETUNE_FEATURES=data/coco
#   TEACHER=openai/clip-vit-base-patch32
#   BENCHMARKS="data/sets/multi30k-task1:test_2016_flickr data/sets/xtd10"   of preprocess/evaluation.sh;
#                        IMAGES="data/flickr30k data/coco", the folder of their images, one for all or one each,
#                        or FEATURES="...", directories of their features
#   OUT=runs/mclip   SEED=16   PRECISION="--fp16 --fp16-no-flatten-grads"
#   MTE1_UPDATES=400000 MTE2_UPDATES=160000 TRIKD_EPOCHS=15 FINETUNE_EPOCHS=30
#   ENCODER=   an archive to use in TriKD instead of the one that MTE makes (XLMR for the ablation without MTE)
#   ARCH=mclip_base   TRIKD_OPTIONS=   further options of the TriKD stage and of fine-tuning
#   OPTIONS=             of all trainings, such as "--tensorboard-logdir runs/tb" or "--wandb-project mclip"
set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
fail() { echo "run.sh: $*" >&2; exit 2; }
DRY=0 TINY=0 GPUS=1
while [[ ${1:-} == --* ]]; do
  case $1 in
    --help) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"; exit 0 ;;
    --dry-run) DRY=1 ;;
    --tiny) TINY=1 ;;
    --gpus) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--gpus needs a number"; GPUS=$2; shift ;;
    *) fail "$1 is not known; --help says what is" ;;
  esac
  shift
done
ALL=(mte1 mte2 extract trikd finetune evaluate)
STAGES=("$@")
((${#STAGES[@]})) || STAGES=("${ALL[@]}")
[[ ${FINETUNE:-} != *" "* || -n ${FINETUNE_FEATURES:-} ]] || fail "FINETUNE names several sets: name their FINETUNE_FEATURES"
for stage in "${STAGES[@]}"; do
  [[ " ${ALL[*]} " == *" $stage "* ]] || fail "$stage is no stage; name some of ${ALL[*]}"
done

XLMR=${XLMR:-xlmr.base} MT=${MT:-data/mt/bin} PAIRS=${PAIRS:-cs,de,es,ja,ru,zh} CAPTIONS=${CAPTIONS:-data/cc3m}
FINETUNE=${FINETUNE:-data/multi30k} FINETUNE_LANGS=${FINETUNE_LANGS:-en,de,fr,cs}
TEACHER=${TEACHER:-openai/clip-vit-base-patch32} OUT=${OUT:-runs/mclip} SEED=${SEED:-16} ARCH=${ARCH:-mclip_base} MTE_ARCH=${MTE_ARCH:-mte_base}
ENCODER=${ENCODER:-$OUT/encoder}
read -ra PRECISION <<< "${PRECISION---fp16 --fp16-no-flatten-grads}"
read -ra TRIKD_OPTIONS <<< "${TRIKD_OPTIONS:-}"
read -ra OPTIONS <<< "${OPTIONS:-}"
read -ra BENCHMARKS <<< "${BENCHMARKS:-data/sets/multi30k-task1:test_2016_flickr data/sets/xtd10}"
read -ra IMAGES <<< "${IMAGES:-}"
read -ra FEATURES <<< "${FEATURES:-}"
LENGTHS=(--max-update "${MTE1_UPDATES:-400000}") LENGTHS2=(--max-update "${MTE2_UPDATES:-160000}")
EPOCHS=(--max-epoch "${TRIKD_EPOCHS:-15}") TUNING=(--max-epoch "${FINETUNE_EPOCHS:-30}")
BATCH=2048 TUNING_BATCH=128 DROPOUT=0.3
COMMON=(--user-dir "$ROOT/mclip_fairseq" --seed "$SEED" --log-format json --log-interval 100 --no-epoch-checkpoints)
COMMON+=("${OPTIONS[@]}")
if ((TINY)); then
  LENGTHS=(--max-update 2) LENGTHS2=(--max-update 2) EPOCHS=(--max-update 2) TUNING=(--max-update 2) PRECISION=(--cpu)
  BATCH=16 TUNING_BATCH=16 DROPOUT=0 ARCH=mclip_tiny MTE_ARCH=mte_tiny
  COMMON+=(--num-workers 0)
fi
TRAIN=(fairseq-train)
((GPUS == 1)) || TRAIN=(torchrun --standalone --nproc-per-node "$GPUS" -m fairseq_cli.train)
# Several machines: slurm.sbatch sets this to srun and torchrun with its rendezvous.
[[ -z ${LAUNCHER:-} ]] || read -ra TRAIN <<< "$LAUNCHER -m fairseq_cli.train"

run() {
  printf '+'
  printf ' %q' "$@"
  printf '\n'
  ((DRY)) || "$@"
}
# A run that is asked to stop saves and ends with status 0: it is not finished, and no other stage follows.
ASKED=0
trap 'ASKED=1' TERM USR1
stops() { { [[ ! -f $1 ]] || cat "$1"; } | grep -c 'updates and ending' || true; }
# train RESULT OPTION...: fairseq-train into the directory of RESULT, unless that is finished.
train() {
  local folder=$OUT/$1
  shift
  [[ -e $folder/finished ]] && { echo "$folder is finished"; return; }
  local log=$folder/train.log before
  ((DRY)) || mkdir -p "$folder"
  before=$(stops "$log")
  run "${TRAIN[@]}" "$@" "${COMMON[@]}" "${PRECISION[@]}" --save-dir "$folder" --log-file "$log"
  if ((ASKED)) || [[ $(stops "$log") != "$before" ]]; then
    echo "$folder was asked to stop; the same command goes on from there"
    exit 0
  fi
  ((DRY)) || touch "$folder/finished"
}
pairs() { local list=(); for lang in ${PAIRS//,/ }; do list+=("en-$lang"); done; local IFS=,; echo "${list[*]}"; }

mte() { # mte NAME OPTION...: what both stages have in common
  local name=$1
  shift
  train "$name" "$MT" --task mte --langs "en,$PAIRS" --lang-pairs "$(pairs)" --both-directions \
    --sampling-temperature 5 --truncate --arch "$MTE_ARCH" --xlmr "$XLMR" --criterion mte --dropout 0.1 \
    --optimizer fused_adamw --adamw-betas "(0.9, 0.98)" --lr-scheduler inverse_sqrt --clip-norm 2 "$@"
}
mte1() {
  mte mte1 --freeze encoder --lr 5e-4 --warmup-updates 4000 --warmup-init-lr 1e-7 --max-tokens 4096 "${LENGTHS[@]}"
}
mte2() {
  mte mte2 --freeze embeddings --finetune-from-model "$OUT/mte1/checkpoint_best.pt" --contrastive-weight 2 \
    --contrastive-temperature 0.1 --lr 1e-4 --warmup-updates 10 --warmup-init-lr 2e-5 --max-tokens 1024 \
    --update-freq 4 "${LENGTHS2[@]}"
}
extract() {
  [[ -e $OUT/encoder/model.pt ]] && { echo "$OUT/encoder is there"; return; }
  run mclip-extract-mte "$OUT/mte2/checkpoint_best.pt" --tokenizer "$XLMR" --output "$OUT/encoder"
}
projectors() { # projectors NAME BIN FEATURES OPTION...: what TriKD and fine-tuning have in common
  local name=$1 data=$2 features=$3
  shift 3
  train "$name" "$data" --task trikd --image-features "$features/image" --text-features "$features/text" \
    --teacher "$TEACHER" --arch "$ARCH" --text-encoder "$ENCODER" --criterion trikd --dropout "$DROPOUT" \
    --optimizer mclip_lamb --lr 1e-2 --lr-scheduler inverse_sqrt --warmup-updates 500 --warmup-init-lr 1e-7 \
    --clip-norm 2 --valid-retrieval --best-checkpoint-metric mean_recall --maximize-best-checkpoint-metric \
    "${TRIKD_OPTIONS[@]}" "$@"
}
trikd() {
  projectors trikd "$CAPTIONS/bin" "$CAPTIONS/features" --langs en --weight-decay 0.01 --batch-size "$BATCH" --validate-interval-updates 250 \
    "${EPOCHS[@]}"
}
finetune() {
  local folders bins
  read -ra folders <<< "$FINETUNE"
  bins=$(IFS=: && echo "${folders[*]/%//bin}")
  projectors "finetune-${FINETUNE_LANGS//,/-}" "$bins" "${FINETUNE_FEATURES:-$FINETUNE/features}" --langs "$FINETUNE_LANGS" --weight-decay 0.001 \
    --positives image --finetune-from-model "$OUT/trikd/checkpoint_best.pt" --batch-size "$TUNING_BATCH" "${TUNING[@]}"
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
  ((${#models[@]})) || fail "$OUT holds no trained model; run the stages before evaluate"
  run mclip-evaluate "${BENCHMARKS[@]}" --model "${models[@]}" --name "${names[@]}" --output "$OUT/evaluation" \
    --cache "$OUT/cache" "${images[@]}" "${features[@]}" --published
}

command -v fairseq-train > /dev/null || PATH=$ROOT/.venv/bin:$PATH
for stage in "${STAGES[@]}"; do
  printf '\n\033[1m%s\033[0m\n' "$stage"
  "$stage"
done
