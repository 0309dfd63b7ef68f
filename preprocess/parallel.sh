#!/usr/bin/env bash
# Parallel text of one language pair, from the download to what fairseq-train reads.
#
#   preprocess/parallel.sh --xlmr DIR --output OUT [--jobs N] SRC TGT \
#     --train INPUT... [--valid INPUT...] [--test INPUT...]
#
# DIR holds XLM-R's sentencepiece.bpe.model and dict.txt. An INPUT is what parallel.py takes, and so may be its other
# options: --moses FILE FILE, --zip FILE, --tsv FILE --columns 1 2, --sgm FILE FILE, --max-ratio 3, ...
# Run it once per pair with the same OUT; fairseq-train then reads OUT/bin:
#
#   preprocess/parallel.sh --xlmr xlmr.base --output mt en de --train --zip de-en.txt.zip \
#     --exclude newstest2014-deen-ref.de --valid --sgm newstest2013-src.en.sgm newstest2013-ref.de.sgm
#
# OUT/raw has the cleaned text and, in SPLIT.SRC-TGT.json, what was dropped and why; OUT/pieces its pieces.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/recipe.sh"

[[ ${1:-} != --help && $# -gt 0 ]] || { usage "$0"; exit "$(($# < 1 ? 2 : 0))"; }
XLMR='' OUT='' JOBS=''
while [[ ${1:-} == --* ]]; do
  case $1 in
    --xlmr) value "$@"; XLMR=$2 ;;
    --output) value "$@"; OUT=$2 ;;
    --jobs) value "$@"; JOBS=$2 ;;
    *) fail "$1 is not known here; --help says what is" ;;
  esac
  shift 2
done
(($# > 2)) || fail "name both languages, then --train and its input; --help says more"
[[ -n $OUT ]] || fail "--output is missing"
check_xlmr "$XLMR"
PAIR=$1-$2
LANGUAGES=("$1" "$2")
shift 2
SPLIT=''
INPUT=()

# What was collected for a split goes through parallel.py.
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
      [[ -n $SPLIT ]] || fail "$argument: say first which split it is, --train, --valid or --test"
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
pieces "$XLMR" "$OUT/pieces" "${FILES[@]}"
binarise "$XLMR" --pieces "$OUT/pieces" --pairs "$PAIR" --splits "${SPLITS[@]}" --output "$OUT/bin" ${JOBS:+--workers "$JOBS"}
