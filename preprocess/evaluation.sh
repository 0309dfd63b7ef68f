#!/usr/bin/env bash
# All evaluation sets that have been downloaded, from one folder of downloads to one folder of sets.
#
#   preprocess/evaluation.sh --downloads DIR --output OUT [--expect-counts no]
#
# DIR has one folder per download. Sets without a download are skipped and listed at the end. So are sets that failed,
# each with its error above; the exit status is then 2.
#
#   coco/             dataset_coco.json, train2014/, val2014/        COCO en, and the images of other sets
#   stair/            stair_captions_v1.2_{train,val}.json           COCO ja (with coco/)
#   coco-cn/          coco-cn-version1805v1.1/                       COCO zh
#   multi30k/         data/ of the repository                        Multi30K, both tasks: val and test 2016
#   flickr30k/        the images                                     images of Multi30K, Flickr30k-CN, xFlickr&CO
#   flickr30k-cn/     test_texts.jsonl or flickr30k_cn_test.txt      Flickr30k-CN
#   xtd10/            the repository                                 XTD10
#   xm3600/           captions.jsonl, images/                        Crossmodal-3600
#   iglue/            datasets/ of the repository                    xFlickr&CO, WIT
#   wit/              the images                                     images of WIT
#   laser/            data/tatoeba/v1/ of the repository             Tatoeba-112
#   stsb/             sts-{train,dev,test}.csv                       STS-B
#   stsb-multi/       data/ of the repository                        STS-B's translations
#   sts2017/          STS.LANG-LANG.txt                              STS 2017
#   babel-imagenet/   data/ of the repository                        Babel-ImageNet
#   imagenet/         val/, one folder per class                     images of Babel-ImageNet
#
# If an image folder exists, it must hold every image of the set. Each script's --help says where to get its data.
# Afterwards, mclip-features --images OUT/SET/images.tsv --root DIR/IMAGES makes the features.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../examples/recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../examples/recipe.sh"

[[ ${1:-} != --help && $# -gt 0 ]] || { usage "$0"; exit "$(($# < 1 ? 2 : 0))"; }
DIR='' OUT=''
COUNTS=()
while (($# > 0)); do
  value "$@"
  case $1 in
    --downloads) DIR=$2 ;;
    --output) OUT=$2 ;;
    --expect-counts) COUNTS=(--expect-counts "$2") ;;
    *) fail "unknown option $1; --help lists the options" ;;
  esac
  shift 2
done
[[ -n $DIR && -n $OUT ]] || fail "--downloads or --output is missing; give both"
[[ -d $DIR ]] || fail "$DIR: no such folder"
ABSENT=()
FAILED=()

# images FOLDER: the option that names an image folder, if it exists.
images() { if [[ -d $DIR/$1 ]]; then printf -- '--images\n%s\n' "$DIR/$1"; fi; }

# make SET NEEDED IMAGES SCRIPT ARGUMENT...: one set, if the download NEEDED exists; a failure does not stop the others.
make() {
  local set=$1 needed=$2 folder=$3 script=$4 options
  shift 4
  [[ -e $DIR/$needed ]] || { ABSENT+=("$set ($needed)"); return 0; }
  mapfile -t options < <([[ -z $folder ]] || images "$folder")
  run "$PYTHON" "$PREPROCESS/$script.py" --output "$OUT/$set" "${COUNTS[@]}" "${options[@]}" "$@" || FAILED+=("$set")
}

# Flickr30k-CN is distributed in two formats.
CN=flickr30k-cn/test_texts.jsonl
[[ -e $DIR/$CN ]] || CN=flickr30k-cn/flickr30k_cn_test.txt
# xFlickr&CO has images of both Flickr30k and COCO: make a folder of links.
if [[ -d $DIR/flickr30k && -d $DIR/coco/val2014 ]]; then
  mkdir -p "$OUT"
  BOTH=$(cd "$OUT" && pwd)/.images
  mkdir -p "$BOTH"
  ln -sfn "$(cd "$DIR/flickr30k" && pwd)" "$BOTH/flickr30k-images"
  for part in train2014 val2014; do
    [[ ! -d $DIR/coco/$part ]] || ln -sfn "$(cd "$DIR/coco/$part" && pwd)" "$BOTH/$part"
  done
fi

make coco-en coco/dataset_coco.json coco coco --karpathy "$DIR/coco/dataset_coco.json"
make coco-ja stair coco stair --karpathy "$DIR/coco/dataset_coco.json" --captions "$DIR"/stair/stair_captions_*.json
make coco-zh coco-cn coco coco_cn --folder "$DIR/coco-cn/coco-cn-version1805v1.1"
make multi30k-task1 multi30k/data/task1 flickr30k multi30k --task 1 --splits val test_2016_flickr \
  --data "$DIR/multi30k/data"
make multi30k-task2 multi30k/data/task2 flickr30k multi30k --task 2 --splits val test_2016 --data "$DIR/multi30k/data"
make flickr30k-cn "$CN" flickr30k flickr30k_cn --test "$DIR/$CN"
make xtd10 xtd10 coco xtd10 --folder "$DIR/xtd10"
make xm3600 xm3600 xm3600/images xm3600 --captions "$DIR/xm3600/captions.jsonl"
# translated SET: the option that names IGLUE's machine-translated test captions of a set, if they were downloaded.
translated() {
  local folder=$DIR/iglue/datasets/$1/annotations_machine-translate
  if [[ -d $folder ]]; then printf -- '--translated\n%s\n' "$folder"; fi
}
mapfile -t TRANSLATED < <(translated xFlickrCO)
make xflickrco iglue/datasets/xFlickrCO "" xflickrco --annotations "$DIR/iglue/datasets/xFlickrCO/annotations" \
  "${TRANSLATED[@]}" ${BOTH:+--images "$BOTH"}
mapfile -t TRANSLATED < <(translated wit)
make wit iglue/datasets/wit wit wit --annotations "$DIR/iglue/datasets/wit/annotations" "${TRANSLATED[@]}"
make tatoeba laser "" tatoeba --folder "$DIR/laser/data/tatoeba/v1"
STS=()
for part in stsb stsb-multi sts2017; do [[ ! -d $DIR/$part ]] || STS+=("--$part" "$DIR/$part"); done
if ((${#STS[@]})); then make sts . "" sts "${STS[@]}"; else ABSENT+=("sts (stsb, stsb-multi, sts2017)"); fi
IMAGENET=()
[[ ! -d $DIR/imagenet/val ]] || IMAGENET=(--imagenet "$DIR/imagenet/val")
make babel-imagenet babel-imagenet "" babel_imagenet --labels "$DIR/babel-imagenet/data/babel_imagenet.json" \
  --prompts "$DIR/babel-imagenet/data/nllb_dist13b_prompts.json" "${IMAGENET[@]}"
((${#ABSENT[@]} == 0)) || printf 'not downloaded: %s\n' "${ABSENT[@]}"
((${#FAILED[@]} == 0)) || fail "these sets failed (see the errors above): ${FAILED[*]}"
