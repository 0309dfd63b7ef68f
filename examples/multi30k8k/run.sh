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
#   mclip           MTE, then the teacher's text features over the parallel captions, then TriKD on English pairs
#   published       MTE and TriKD alone, as published
#   distil          the teacher's text features and TriKD, without MTE
#   no-contrastive  mclip whose MTE has no contrastive term
#   no-translation  mclip whose MTE has no translation
#   no-text-text    mclip whose TriKD has no text-text term (takes the encoder of mclip with the same seed)
#   no-image-text   mclip whose TriKD has no image-text term (likewise)
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
  for folder in parallel pairs pairs5; do
    run python "$ROOT/preprocess/encode.py" --model "$tokenizer/sentencepiece.bpe.model" \
      --output "$TEXT/pieces/$folder" "$TEXT/text/$folder"/*.{en,de,fr,cs}
  done
  for lang in de fr cs; do
    run fairseq-preprocess --source-lang en --target-lang "$lang" --srcdict "$dictionary" --joined-dictionary \
      --trainpref "$TEXT/pieces/parallel/train" --validpref "$TEXT/pieces/parallel/valid" --destdir "$TEXT/bin/mte"
  done
  for lang in en de fr cs; do
    run fairseq-preprocess --only-source --source-lang "$lang" --srcdict "$dictionary" \
      --trainpref "$TEXT/pieces/parallel/train" --destdir "$TEXT/bin/parallel"
    run fairseq-preprocess --only-source --source-lang "$lang" --srcdict "$dictionary" \
      --validpref "$TEXT/pieces/pairs/valid" --destdir "$TEXT/bin/pairs"
  done
  for folder in pairs pairs5; do
    run fairseq-preprocess --only-source --source-lang en --srcdict "$dictionary" \
      --trainpref "$TEXT/pieces/$folder/train" --destdir "$TEXT/bin/$folder"
  done
  for folder in parallel pairs pairs5; do
    cp "$TEXT/text/$folder"/*.ids "$TEXT/bin/$folder/"
  done
  touch "$TEXT/complete"
}
