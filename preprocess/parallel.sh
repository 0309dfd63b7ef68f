#!/usr/bin/env bash
# Parallel text of one language pair, from the download to the files that fairseq-train reads.
#
#   preprocess/parallel.sh --xlmr DIR --output OUT [--jobs N] SRC TGT \
#     --train INPUT... [--valid INPUT...] [--test INPUT...]
#
# DIR holds XLM-R's sentencepiece.bpe.model and dict.txt. INPUT is any option of parallel.py: --moses FILE FILE,
# --zip FILE, --tsv FILE --columns 1 2, --sgm FILE FILE, --max-ratio 3, ...
# Run it once per pair with the same OUT; then train on OUT/bin:
#
#   preprocess/parallel.sh --xlmr xlmr.base --output mt en de --train --zip de-en.txt.zip \
#     --exclude newstest2014-deen-ref.de --valid --sgm newstest2013-src.en.sgm newstest2013-ref.de.sgm
#
# Writes OUT/raw (the cleaned text and, in SPLIT.SRC-TGT.json, what was dropped and why), OUT/pieces and OUT/bin.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../examples/recipe.sh"

[[ ${1:-} != --help && $# -gt 0 ]] || { usage "$0"; exit "$(($# < 1 ? 2 : 0))"; }
XLMR='' OUT='' JOBS=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --xlmr) value "$@"; XLMR=$2 ;;
    --output) value "$@"; OUT=$2 ;;
    --jobs) value "$@"; JOBS=$2 ;;
    *) fail "unknown option $1; --help lists the options" ;;
  esac
  shift 2
done
(($# > 2)) || fail "name both languages, then --train and its input; --help shows an example"
[[ -n $OUT ]] || fail "--output is missing"
check_xlmr "$XLMR"
PAIR=$1-$2
LANGUAGES=("$1" "$2")
shift 2
SPLIT=''
INPUT=()

# Run parallel.py on the input collected for a split.
finish() {
  [[ -n $SPLIT ]] || return 0
  run "$PYTHON" "$PREPROCESS/parallel.py" --languages "${LANGUAGES[@]}" --split "$SPLIT" --output "$OUT/raw" \
    ${JOBS:+--workers "$JOBS"} "${INPUT[@]}"
}

for argument in "$@"; do
  case $argument in
    --train | --valid | --test)
      finish
      SPLIT=${argument#--} INPUT=()
      ;;
    *)
      [[ -n $SPLIT ]] || fail "$argument: belongs to no split; put --train, --valid or --test before it"
      INPUT+=("$argument")
      ;;
  esac
done
finish

FILES=()
SPLITS=()
for split in train valid test; do
  [[ -f $OUT/raw/$split.$PAIR.${LANGUAGES[0]} ]] || continue
  SPLITS+=("$split")
  for lang in "${LANGUAGES[@]}"; do FILES+=("$OUT/raw/$split.$PAIR.$lang"); done
done
pieces "$XLMR" "$OUT/pieces" ${JOBS:+--workers "$JOBS"} "${FILES[@]}"
binarise "$XLMR" --pieces "$OUT/pieces" --pairs "$PAIR" --splits "${SPLITS[@]}" --output "$OUT/bin" \
  ${JOBS:+--workers "$JOBS"}
