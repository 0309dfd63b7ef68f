#!/usr/bin/env bash
# mCLIP with XLM-R large. Everything else, including the options, is as in examples/mclip/run.sh.
#
#   examples/mclip_plus/run.sh [--dry-run] [--tiny] [--gpus N] [STAGE...]
set -euo pipefail

export XLMR=${XLMR:-xlmr.large} ARCH=${ARCH:-mclip_large} MTE_ARCH=${MTE_ARCH:-mte_large} OUT=${OUT:-runs/mclip_plus}
exec bash "$(dirname "${BASH_SOURCE[0]}")/../mclip/run.sh" "$@"
