#!/usr/bin/env bash
# Text encodings of CC3M, MSCOCO and VizWiz, as published beside M-CLIP: the final text features of a CLIP, by id.
#
#   examples/text_encodings/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
#
# STAGE is any of join features describe (default: all). A stage that has its result is skipped; an interrupted one
# continues where it stopped.
#
#   --dry-run   print the commands without running them
#   --tiny      on the CPU, to check that data and stages fit together
#   --gpus N    processes on this machine, one per GPU, that share the captions (default: 1)
#
# Paths and settings are environment variables; override any of them:
#   SETS="cc3m=data/sets/cc3m coco=data/sets/coco vizwiz=data/sets/vizwiz"   directories of preprocess/cc3m.py, coco.py
#                        and vizwiz.py; each has texts.en.tsv and manifest.json
#   TEACHER=openai/clip-vit-large-patch14   OUT=runs/text_encodings   DTYPE=float16 (of the stored encodings)
#   OPTIONS=             further options of mclip-features
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"
stages "join features describe" "$@"

TEACHER=${TEACHER:-openai/clip-vit-large-patch14} OUT=${OUT:-runs/text_encodings} DTYPE=${DTYPE:-float16}
read -ra SETS <<< "${SETS:-cc3m=data/sets/cc3m coco=data/sets/coco vizwiz=data/sets/vizwiz}"
read -ra OPTIONS <<< "${OPTIONS:-}"
((TINY == 0)) || OPTIONS+=(--device cpu)
encodings=$OUT/encodings

join() {
  [[ -e $OUT/sources.json ]] && { echo "$OUT/captions.tsv exists"; return; }
  run "$PYTHON" "$ROOT/examples/text_encodings/encodings.py" join "${SETS[@]}" --output "$OUT"
}
# Each process takes every N-th shard; the one that finishes last writes the manifest.
features() {
  local gpu jobs=() status=0
  for ((gpu = 0; gpu < GPUS; gpu++)); do
    local command=(mclip-features --model "$TEACHER" --captions "$OUT/captions.tsv" --store-dtype "$DTYPE"
      --output "$encodings" --machines "$GPUS" --machine "$gpu")
    ((GPUS == 1)) || command+=(--device "cuda:$gpu")
    run "${command[@]}" "${OPTIONS[@]}" &
    jobs+=($!)
  done
  for gpu in "${jobs[@]}"; do wait "$gpu" || status=$?; done
  return "$status"
}
describe() {
  run "$PYTHON" "$ROOT/examples/text_encodings/encodings.py" describe "$encodings" --sources "$OUT/sources.json"
}

for stage in "${STAGES[@]}"; do
  say "$stage"
  "$stage"
done
