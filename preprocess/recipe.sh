# shellcheck shell=bash
# What the recipes share; sourced by them, not run.
shopt -s nullglob

PREPROCESS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
export PYTHONPATH=${PREPROCESS%/*}${PYTHONPATH:+:$PYTHONPATH}
PYTHON=${PYTHON:-python}

run() { printf '+ %s\n' "$*"; "$@"; }

# The comment at the head of a recipe is its help.
usage() { sed -n '2,/^[^#]/{/^[^#]/d;s/^# \{0,1\}//p}' "$1"; }

fail() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 2; }

# value OPTION ARGUMENTS...: refuses an option without its value.
value() { (($# > 1)) || fail "$1 needs a value; --help says more"; }

# pieces MODEL_DIR OUT FILE...: SentencePiece pieces of text files.
pieces() {
  local xlmr=$1 out=$2
  shift 2
  run "$PYTHON" "$PREPROCESS/encode.py" --model "$xlmr/sentencepiece.bpe.model" --output "$out" "$@"
}

# binarise MODEL_DIR OPTION...: fairseq-preprocess with XLM-R's dictionary.
binarise() {
  local xlmr=$1
  shift
  run "$PYTHON" "$PREPROCESS/binarise.py" --dictionary "$xlmr/dict.txt" "$@"
}

# check_xlmr DIR
check_xlmr() {
  local file
  [[ -n $1 ]] || fail "--xlmr is missing: name the folder with sentencepiece.bpe.model and dict.txt"
  for file in sentencepiece.bpe.model dict.txt; do
    [[ -f $1/$file ]] || fail "$1/$file: not found; --xlmr names the folder of XLM-R's release"
  done
}
