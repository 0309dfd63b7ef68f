#!/usr/bin/env bash
# The whole method on Multi30K captions and the Flickr8k photos, with small models, on a CPU.
#
#   examples/multi30k8k/run.sh DATA [OUTPUT]
#
# DATA is the multi30k8k directory (see README.md). One run trains one variant with one seed:
#
#   SEED=1 VARIANT=mclip examples/multi30k8k/run.sh DATA runs/multi30k8k
#
# VARIANT is one of
#   mclip           MTE; then the encoder learns the teacher's features over the parallel captions and English pairs;
#                   then TriKD on English pairs
#   published       MTE, for the minutes of the two first stages, and TriKD alone, as published
#   distil          mclip without MTE
#   no-contrastive  mclip whose MTE has no contrastive term
#   no-translation  mclip whose MTE has no translation
#   no-text-text    mclip whose TriKD has no text-text term (takes the encoder of mclip with the same seed)
#   no-image-text   mclip whose TriKD has no image-text term (likewise)
#   finetune-en, finetune-de, ..., finetune-all  mclip, then all captions of one language or of all, positives by image
#   stages          MTE in the two stages of the paper from the encoder of mclip: the decoder alone, then both with
#                   contrast, and beside that as many updates without; translations and Tatoeba-style retrieval after each
#   teacher-learning  M-CLIP's way: mean squared error to the teacher's text features, for the same minutes
# SCALE multiplies all numbers of updates (1 is the published table, 0.01 a smoke test).
set -euo pipefail
shopt -s nullglob

if [[ $# -lt 1 || $1 == --help ]]; then
  sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"
  exit "$(($# < 1))"
fi
DATA=$1
OUT=${2:-runs/multi30k8k}
SEED=${SEED:-1}
VARIANT=${VARIANT:-mclip}
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PLUGIN=$ROOT/mclip_fairseq
LANGS=en,de,fr,cs
TEXT=$OUT/data
RUN=$OUT/$VARIANT-$SEED
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
command -v fairseq-train > /dev/null || PATH=$ROOT/.venv/bin:$PATH

say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
run() { printf '+ %s\n' "$*"; "$@"; }

# A step whose result is there is not done again; its time is kept beside it.
step() {
  local name=$1 result=$2
  shift 2
  [[ -e $result ]] && { say "$name: $result is there"; return; }
  say "$name"
  local start=$SECONDS
  "$@"
  mkdir -p "$RUN" && echo "$name $((SECONDS - start))" >> "$RUN/seconds.txt"
}

updates() { awk -v n="$1" -v s="${SCALE:-1}" 'BEGIN { u = int(n * s); print (u < 2 ? 2 : u) }'; }

# ---------------------------------------------------------------- data, once for all variants and seeds
binarise() {
  local tokenizer=$TEXT/tokenizer dictionary=$TEXT/tokenizer/dict.txt folder lang
  run python "$ROOT/examples/multi30k8k/prepare.py" "$DATA" "$TEXT"
  run python "$ROOT/preprocess/train_tokenizer.py" --vocabulary 10000 --output "$tokenizer" \
    "$TEXT"/text/parallel/train.{en,de,fr,cs}
  for folder in parallel pairs pairs5 photos; do
    run python "$ROOT/preprocess/encode.py" --model "$tokenizer/sentencepiece.bpe.model" \
      --output "$TEXT/pieces/$folder" "$TEXT/text/$folder"/*.{en,de,fr,cs}
  done
  local binarise=(python "$ROOT/preprocess/binarise.py" --dictionary "$dictionary")
  run "${binarise[@]}" --pieces "$TEXT/pieces/parallel" --pairs en-de en-fr en-cs --output "$TEXT/bin/mte"
  run "${binarise[@]}" --pieces "$TEXT/pieces/parallel" --captions en de fr cs --splits train --output "$TEXT/bin/parallel"
  run "${binarise[@]}" --pieces "$TEXT/pieces/pairs" --captions en de fr cs --output "$TEXT/bin/pairs"
  run "${binarise[@]}" --pieces "$TEXT/pieces/pairs5" --captions en --output "$TEXT/bin/pairs5"
  run "${binarise[@]}" --pieces "$TEXT/pieces/photos" --captions en de fr cs --output "$TEXT/bin/photos"
  for folder in parallel pairs pairs5 photos; do
    cp "$TEXT/text/$folder"/*.ids "$TEXT/bin/$folder/"
  done
  touch "$TEXT/complete"
}

# ---------------------------------------------------------------- the stages
SIZES=(--encoder-layers 2 --encoder-embed-dim 256 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4)
LOGGING=(--log-format simple --log-interval 50 --no-epoch-checkpoints --disable-validation --num-workers 0)
FEATURES=(--image-features "$TEXT/features/image" --text-features "$TEXT/features/text")

# train UPDATES WARMUP OPTION...: fairseq-train with the learning rate falling to 0 over the updates.
train() {
  local updates warmup=$2
  updates=$(updates "$1")
  shift 2
  ((warmup < updates)) || warmup=1
  run fairseq-train "$@" --user-dir "$PLUGIN" --seed "$SEED" --cpu --optimizer fused_adamw --clip-norm 1 \
    --lr-scheduler polynomial_decay --warmup-updates "$warmup" --max-update "$updates" --total-num-update "$updates" \
    "${LOGGING[@]}"
}

ARCHITECTURE=(--arch mte_tiny "${SIZES[@]}" --decoder-layers 1 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4)
mte() { # mte UPDATES DIRECTORY [OPTION...]: translation and contrast on the parallel captions
  local count=$1 folder=$2
  shift 2
  train "$count" 40 "$TEXT/bin/mte" --task mte --langs "$LANGS" --lang-pairs en-de,en-fr,en-cs --both-directions \
    "${ARCHITECTURE[@]}" --dropout 0 --criterion mte --contrastive-weight 3 --contrastive-temperature 0.1 --lr 2e-3 --batch-size 256 \
    --save-dir "$folder" "$@"
}

# guide ENCODER DIRECTORY: the teacher's features of the English captions, for the captions of every language, and of
# the photos, for the English ones. ENCODER is empty for random weights.
guide() {
  train 900 100 "$TEXT/bin/pairs:$TEXT/bin/pairs5:$TEXT/bin/parallel" --task trikd --langs "$LANGS" "${FEATURES[@]}" \
    --arch mclip_tiny --text-encoder "$1" --text-tokenizer "$TEXT/tokenizer" --freeze-text none "${SIZES[@]}" \
    --projector-layers 0 --pooling mean --dropout 0 --criterion trikd --positives image \
    --image-text-weight 1 --text-text-weight 1 --text-text-scale 8 --lr 2e-3 --batch-size 512 --save-dir "$2"
}

trikd() { # trikd ENCODER DIRECTORY [OPTION...]: English image-caption pairs only, the encoder frozen
  local encoder=$1 folder=$2
  shift 2
  train 300 50 "$TEXT/bin/pairs:$TEXT/bin/pairs5" --task trikd --langs en "${FEATURES[@]}" \
    --arch mclip_tiny --text-encoder "$encoder" --pooling mean --projector-layers 1 --projector-ffn-embed-dim 1024 \
    --projector-attention-heads 4 --dropout 0.1 --criterion trikd --positives image \
    --text-text-weight 1 --text-text-scale 8 --text-state-cache "$OUT/states" --text-state-dtype float16 \
    --lr 1e-3 --batch-size 512 --save-dir "$folder" "$@"
}

finetune() { # finetune CHECKPOINT LANGUAGES DIRECTORY: the projectors go on, on the captions of these languages
  local data=$TEXT/bin/photos
  [[ ,$2, != *,en,* ]] || data+=:$TEXT/bin/pairs5
  train 100 20 "$data" --task trikd --langs "$2" "${FEATURES[@]}" \
    --arch mclip_tiny --text-encoder "$ENCODER" --finetune-from-model "$1" --pooling mean --projector-layers 1 \
    --projector-ffn-embed-dim 1024 --projector-attention-heads 4 --dropout 0.1 --criterion trikd --positives image \
    --text-text-weight 1 --text-text-scale 8 --text-state-cache "$OUT/states" --text-state-dtype float16 \
    --lr 2e-4 --batch-size 512 --save-dir "$3"
}

teacher_learning() { # teacher_learning DIRECTORY: M-CLIP's way, for about the minutes of the other stages together
  train 1200 100 "$TEXT/bin/pairs:$TEXT/bin/parallel" --task trikd --langs "$LANGS" "${FEATURES[@]}" \
    --arch teacher_learning_tiny --text-tokenizer "$TEXT/tokenizer" "${SIZES[@]}" --dropout 0 \
    --criterion teacher_learning --lr 2e-3 --batch-size 512 --save-dir "$1"
}

evaluate() { # evaluate CHECKPOINT SPLIT: the captions of every language
  local captions=() lang
  for lang in en de fr cs; do captions+=("$lang=$TEXT/gallery/$2.$lang"); done
  run mclip-evaluate --model "$1" --features "$TEXT/features/image" --ids "$TEXT/gallery/$2.ids" \
    --captions "${captions[@]}" --output "$RUN/evaluation/$2"
}

translate() { # translate CHECKPOINT DIRECTORY: the validation captions from English and into it, with beam search
  local lang pair hypotheses=() references=()
  mkdir -p "$2"
  for lang in de fr cs; do
    for pair in "en-$lang" "$lang-en"; do
      run fairseq-generate "$TEXT/bin/mte" --user-dir "$PLUGIN" --task mte -s "${pair%-*}" -t "${pair#*-}" --cpu \
        --path "$1" --gen-subset valid --beam 5 --remove-bpe sentencepiece --batch-size 64 > "$2/$pair.txt"
      hypotheses+=("$pair=$2/$pair.txt")
      references+=("$pair=$TEXT/text/parallel/valid.${pair#*-}")
    done
  done
  run mclip-evaluate --hypotheses "${hypotheses[@]}" --references "${references[@]}" --output "$2"
}

extract() { # extract CHECKPOINT DIRECTORY: the encoder as an XLM-R archive
  run mclip-extract-mte "$1" --tokenizer "$TEXT/tokenizer" --output "$2"
}

# ---------------------------------------------------------------- the variants
mkdir -p "$RUN"
step data "$TEXT/complete" binarise

strengthen() { # the encoder of this variant, in $RUN/encoder
  local start=
  if [[ $VARIANT != distil ]]; then
    local options=() count=120
    # Without the stage in between, its minutes go to MTE.
    [[ $VARIANT == published ]] && count=400
    [[ $VARIANT == no-contrastive ]] && options=(--contrastive-weight 0)
    [[ $VARIANT == no-translation ]] && options=(--translation-weight 0)
    step mte "$RUN/mte/checkpoint_last.pt" mte "$count" "$RUN/mte" "${options[@]}"
    step extract "$RUN/mte-encoder" extract "$RUN/mte/checkpoint_last.pt" "$RUN/mte-encoder"
    start=$RUN/mte-encoder
  fi
  if [[ $VARIANT == published ]]; then
    ENCODER=$start
    return
  fi
  step guide "$RUN/guide/checkpoint_last.pt" guide "$start" "$RUN/guide"
  step extract "$RUN/encoder" extract "$RUN/guide/checkpoint_last.pt" "$RUN/encoder"
  ENCODER=$RUN/encoder
}

stages() { # the two stages of MTE as published: the decoder alone, then encoder and decoder with contrast
  local name common=(--xlmr "$ENCODER" --dropout 0.1 --batch-size 128)
  step mte1 "$RUN/mte1/checkpoint_last.pt" mte 1200 "$RUN/mte1" "${common[@]}" --freeze encoder --contrastive-weight 0
  common+=(--freeze embeddings --finetune-from-model "$RUN/mte1/checkpoint_last.pt" --lr 5e-4)
  step mte2 "$RUN/mte2/checkpoint_last.pt" mte 300 "$RUN/mte2" "${common[@]}"
  step longer "$RUN/longer/checkpoint_last.pt" mte 300 "$RUN/longer" "${common[@]}" --contrastive-weight 0
  for name in mte1 mte2 longer; do
    step "translate-$name" "$RUN/translations/$name/report.json" \
      translate "$RUN/$name/checkpoint_last.pt" "$RUN/translations/$name"
    step "extract-$name" "$RUN/$name-encoder" extract "$RUN/$name/checkpoint_last.pt" "$RUN/$name-encoder"
  done
  run mclip-evaluate "$TEXT/bitext" --model "$RUN"/{mte1,mte2,longer}-encoder --name mte1 mte2 longer \
    --output "$RUN/evaluation/bitext"
}

case $VARIANT in
  stages)
    ENCODER=$OUT/mclip-$SEED/encoder
    [[ -d $ENCODER ]] || { echo "$ENCODER is not there; run VARIANT=mclip SEED=$SEED first" >&2; exit 2; }
    stages
    exit
    ;;
  mclip | published | distil | no-contrastive | no-translation)
    strengthen
    step trikd "$RUN/trikd/checkpoint_last.pt" trikd "$ENCODER" "$RUN/trikd"
    ;;
  no-text-text | no-image-text)
    ENCODER=$OUT/mclip-$SEED/encoder
    [[ -d $ENCODER ]] || { echo "$ENCODER is not there; run VARIANT=mclip SEED=$SEED first" >&2; exit 2; }
    options=(--text-text-weight 0)
    [[ $VARIANT == no-image-text ]] && options=(--image-text-weight 0)
    step trikd "$RUN/trikd/checkpoint_last.pt" trikd "$ENCODER" "$RUN/trikd" "${options[@]}"
    ;;
  finetune-*)
    ENCODER=$OUT/mclip-$SEED/encoder
    start=$OUT/mclip-$SEED/trikd/checkpoint_last.pt
    [[ -e $start ]] || { echo "$start is not there; run VARIANT=mclip SEED=$SEED first" >&2; exit 2; }
    languages=${VARIANT#finetune-}
    [[ $languages == all ]] && languages=$LANGS
    step finetune "$RUN/trikd/checkpoint_last.pt" finetune "$start" "$languages" "$RUN/trikd"
    ;;
  teacher-learning)
    step trikd "$RUN/trikd/checkpoint_last.pt" teacher_learning "$RUN/trikd"
    ;;
  *)
    echo "VARIANT=$VARIANT is not one of those listed in --help" >&2
    exit 2
    ;;
esac
for gallery in "$TEXT"/gallery/*.ids; do
  split=$(basename "$gallery" .ids)
  step "evaluate-$split" "$RUN/evaluation/$split/report.json" evaluate "$RUN/trikd/checkpoint_last.pt" "$split"
done
