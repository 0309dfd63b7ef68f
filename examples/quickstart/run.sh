#!/usr/bin/env bash
# A tour of mclip_fairseq in ten minutes on two CPU cores: drawings meet English names only, and thirteen other
# languages find the drawings all the same. Every command is what you would run on real data.
#
#   examples/quickstart/run.sh [OUTPUT]        (default: runs/quickstart; SEED=1 names the seed)
set -euo pipefail

if [[ ${1:-} == --help ]]; then
  sed -n '2,5s/^# \{0,1\}//p' "$0"
  exit 0
fi
OUT=${1:-runs/quickstart}
SEED=${SEED:-1}
ROOT=$(cd "$(dirname "$0")/../.." && pwd)
PLUGIN=$ROOT/mclip_fairseq
HERE=$ROOT/examples/quickstart
OTHERS=(es ja ko pt it fr de fa id zh ru tr ar)
LANGS=en,$(IFS=,; echo "${OTHERS[*]}")
PAIRS=$(printf 'en-%s,' "${OTHERS[@]}")
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
mkdir -p "$OUT"
: > "$OUT/seconds.tsv"

# Print a heading and the command, run it, keep its time; the full output goes to a log.
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n\033[1m%s\033[0m\n$ %s\n' "$name" "$*"
  if ! "$@" > "$OUT/${name// /-}.log" 2>&1; then
    tail -n 30 "$OUT/${name// /-}.log" >&2
    printf '%s failed; the whole output is in %s\n' "$name" "$OUT/${name// /-}.log" >&2
    exit 1
  fi
  printf '%s\t%s\n' "$name" "$((SECONDS - start))" >> "$OUT/seconds.tsv"
  printf '  %s seconds\n' "$((SECONDS - start))"
}
