#!/usr/bin/env bash
# What each part of TriKD is worth: the same data and encoder, one thing changed.
#
#   examples/ablations/run.sh [--dry-run] [--tiny] [--gpus N]
#
# Needs the encoder from examples/mclip (its stages mte1, mte2 and extract). Variants: itc (image-text term alone), ttc
# (text-text term alone), xlmr (no MTE: vanilla XLM-R), depth0, depth1, depth4 (layers of the X-projector; 2 is
# published). VARIANTS="itc ttc" selects some. The variables of examples/mclip/run.sh work here too.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

[[ " $* " != *" --help "* ]] || { usage "$0"; exit 0; }
BASE=${OUT:-runs/mclip}
export ENCODER=${ENCODER:-$BASE/encoder}
COMMON_OPTIONS=${TRIKD_OPTIONS:-}
for variant in ${VARIANTS:-itc ttc xlmr depth0 depth1 depth4}; do
  encoder=$ENCODER
  case $variant in
    itc) options="--text-text-weight 0" ;;
    ttc) options="--image-text-weight 0 --text-text-weight 1" ;;
    xlmr) options="" encoder=${XLMR:-xlmr.base} ;;
    depth[0-9]) options="--projector-layers ${variant#depth}" ;;
    *) fail "$variant is not a variant; --help lists them" ;;
  esac
  say "== $variant"
  OUT=$BASE-$variant ENCODER=$encoder TRIKD_OPTIONS="$COMMON_OPTIONS $options" \
    bash "$ROOT/examples/mclip/run.sh" "$@" trikd evaluate
done
