#!/usr/bin/env bash
# What each part of TriKD is worth: the same data and encoder, one thing changed.
#
#   examples/ablations/run.sh [--dry-run] [--tiny] [--gpus N]
#
# Needs the encoder of examples/mclip (its stages mte1, mte2 and extract). Variants: itc (image-text term alone), ttc
# (text-text term alone), xlmr (no MTE: vanilla XLM-R), depth0, depth1, depth4 (layers of the X-projector; 2 is
# published); VARIANTS="itc ttc" chooses some. The variables of examples/mclip/run.sh hold here too.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
[[ " $* " != *" --help "* ]] || { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0"; exit 0; }
BASE=${OUT:-runs/mclip}
export ENCODER=${ENCODER:-$BASE/encoder}
GIVEN=${TRIKD_OPTIONS:-}
for variant in ${VARIANTS:-itc ttc xlmr depth0 depth1 depth4}; do
  encoder=$ENCODER
  case $variant in
    itc) options="--text-text-weight 0" ;;
    ttc) options="--image-text-weight 0 --text-text-weight 1" ;;
    xlmr) options="" encoder=${XLMR:-xlmr.base} ;;
    depth[0-9]) options="--projector-layers ${variant#depth}" ;;
    *) echo "run.sh: $variant is no variant; --help lists them" >&2; exit 2 ;;
  esac
  printf '\n\033[1m== %s\033[0m\n' "$variant"
  OUT=$BASE-$variant ENCODER=$encoder TRIKD_OPTIONS="$GIVEN $options" bash "$HERE/../mclip/run.sh" "$@" trikd evaluate
done
