#!/usr/bin/env bash
# A set of captions, from the download to the files that fairseq-train and mclip-evaluate read.
#
#   preprocess/captions.sh --xlmr DIR --output OUT [--images DIR] [--teacher MODEL [OPTION...] --] SCRIPT [ARGUMENT...]
#
# SCRIPT is a caption script without .py: own (your own data), cc3m, ccrk, coco, coco_cn, flickr30k, flickr30k_cn,
# multi30k, stair, vizwiz, wit, xflickrco, xm3600, xtd10 or yjcaptions; its arguments follow (preprocess/SCRIPT.py
# --help). DIR holds XLM-R's
# sentencepiece.bpe.model and dict.txt. With --teacher, mclip-features writes the features of the images and of the
# English training captions; its options may follow, up to --.
#
#   preprocess/captions.sh --xlmr xlmr.base --output coco --images coco2014 \
#     --teacher openai/clip-vit-base-patch32 --dtype bfloat16 -- coco --karpathy dataset_coco.json
#
#   preprocess/captions.sh --xlmr xlmr.base --output mine --images photos \
#     --teacher openai/clip-vit-base-patch32 -- own captions.csv
#
# One call makes all splits of a set; for CC3M: cc3m --tar train/*.tar --valid-tar valid/*.tar. Training needs valid.
# Every set needs its own OUT; trikd reads several, joined by colons (docs/data.md).
#
# Writes OUT/text (captions, their ids, manifest.json), OUT/bin (train and valid for fairseq-train, with their ids), and
# OUT/features/image and OUT/features/text (the teacher's features).
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../examples/recipe.sh"

[[ ${1:-} != --help && $# -gt 0 ]] || { usage "$0"; exit "$(($# < 1 ? 2 : 0))"; }
XLMR='' OUT='' IMAGES='' TEACHER=''
OPTIONS=()
while [[ ${1:-} == --* ]]; do
  case $1 in
    --xlmr) value "$@"; XLMR=$2 ;;
    --output) value "$@"; OUT=$2 ;;
    --images) value "$@"; IMAGES=$2 ;;
    --teacher)
      value "$@"
      TEACHER=$2
      shift 2
      while [[ $# -gt 0 && $1 != -- ]]; do OPTIONS+=("$1"); shift; done
      [[ ${1:-} == -- ]] || fail "end the options of --teacher MODEL [OPTION...] with --; --help shows an example"
      shift
      continue
      ;;
    *) fail "unknown option $1; --help lists the options" ;;
  esac
  shift 2
done
(($# > 0)) || fail "no script given; --help lists them"
[[ -n $OUT ]] || fail "--output is missing"
[[ $1 =~ ^[a-z0-9_]+$ && -f $PREPROCESS/$1.py ]] || fail "$1: no such script; --help lists them"
check_xlmr "$XLMR"
SCRIPT=$1
shift
run "$PYTHON" "$PREPROCESS/$SCRIPT.py" --output "$OUT/text" ${IMAGES:+--images "$IMAGES"} "$@"
[[ -f $OUT/text/images.tsv ]] || fail "$SCRIPT writes no captions; --help lists the scripts that do"

FILES=()
declare -A LANGUAGES=()
for ids in "$OUT"/text/{train,valid}.*.ids; do
  FILES+=("${ids%.ids}")
  name=${ids%.ids}
  LANGUAGES[${name##*.}]=1
done
# What an earlier call made of captions that are no longer there would be taken for these.
run rm -f "$OUT"/pieces/{train,valid}.* "$OUT"/bin/{train,valid}.*-None.* "$OUT"/bin/{train,valid}.*.ids
if ((${#FILES[@]})); then
  pieces "$XLMR" "$OUT/pieces" "${FILES[@]}"
  binarise "$XLMR" --pieces "$OUT/pieces" --captions "${!LANGUAGES[@]}" --splits train valid --output "$OUT/bin"
  for file in "${FILES[@]}"; do run cp "$file.ids" "$OUT/bin/"; done
fi

[[ -n $TEACHER ]] || exit 0
# Images of tars and of records are written next to the captions.
[[ -z $IMAGES && -d $OUT/text/images ]] && IMAGES=$OUT/text/images
[[ -n $IMAGES ]] || fail "--images is missing; the teacher needs the images"
run mclip-features --model "$TEACHER" --images "$OUT/text/images.tsv" --root "$IMAGES" --output "$OUT/features/image" \
  "${OPTIONS[@]}"
if [[ -f $OUT/text/texts.en.tsv ]]; then
  run mclip-features --model "$TEACHER" --captions "$OUT/text/texts.en.tsv" --output "$OUT/features/text" \
    "${OPTIONS[@]}"
fi
