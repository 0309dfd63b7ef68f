# shellcheck shell=bash
# Functions that all recipes of examples/ and preprocess/ share. Source this file; do not run it.
shopt -s nullglob

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
PREPROCESS=$ROOT/preprocess
# shellcheck disable=SC2034 # for the recipes
PLUGIN=$ROOT/mclip_fairseq
export PYTHONPATH=$ROOT${PYTHONPATH:+:$PYTHONPATH}
PYTHON=${PYTHON:-python}
command -v fairseq-train > /dev/null || PATH=$ROOT/.venv/bin:$PATH
# 1: print commands without running them.
DRY=0

# usage FILE: the help of a recipe, which is the comment at its top.
usage() { sed -n '2,/^[^#]/{/^[^#]/d;s/^# \{0,1\}//p}' "$1"; }

fail() { printf '%s: error: %s\n' "$(basename "$0")" "$*" >&2; exit 2; }

# value OPTION ARGUMENTS...: fail if an option has no value.
value() { (($# > 1)) || fail "$1 needs a value; --help says more"; }

# say TEXT: print a heading.
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

# show COMMAND...: print a command such that it can be pasted into a shell.
show() { printf '+'; printf ' %q' "$@"; printf '\n'; }

# run COMMAND...: print a command and run it.
run() { show "$@"; ((DRY)) || "$@"; }

# heartbeat LOG: every ten seconds, say how long a command has run, and what its log shows of its progress. It ends with
# the script, also if the script is killed.
heartbeat() {
  local start=$SECONDS progress
  while read -rt 10 <> <(:) || kill -0 "$$" 2> /dev/null; do
    progress=$(tail -c 2000 "$1" 2> /dev/null | grep -oE '[0-9]+%\||num_updates=[0-9]+' | tail -n 1 | tr -d '|') || true
    printf '  ... %s seconds%s\n' "$((SECONDS - start))" "${progress:+, ${progress/num_updates=/update }}"
  done
}

# run_to LOG COMMAND...: like run, but its output goes to a file, and a heartbeat is shown; on failure, show its end.
run_to() {
  local log=$1 beat status=0
  shift
  show "$@"
  : > "$log"
  heartbeat "$log" &
  beat=$!
  "$@" > "$log" 2>&1 || status=$?
  kill "$beat" 2> /dev/null || true
  wait "$beat" 2> /dev/null || true
  ((status == 0)) || { tail -n 30 "$log" >&2; fail "the command above failed; its whole output is in $log"; }
}

# aside FILE COMMAND...: run a command beside the script; FILE gets its output. It ends with the script.
aside() {
  ASIDE_OUTPUT=$1
  shift
  set -m # a process group of its own, which a signal reaches as a whole
  "$@" > "$ASIDE_OUTPUT" 2>&1 &
  set +m
  ASIDE=$!
  trap 'kill -- "-$ASIDE" 2> /dev/null || true' EXIT
}

# rejoin: wait for the command of `aside`, and print its output.
rejoin() {
  local beat status=0
  heartbeat "$ASIDE_OUTPUT" &
  beat=$!
  wait "$ASIDE" || status=$?
  trap - EXIT
  kill "$beat" 2> /dev/null || true
  wait "$beat" 2> /dev/null || true
  cat "$ASIDE_OUTPUT"
  ((status == 0)) || fail "the command above failed"
}

# made RESULT COMMAND...: run the command that makes RESULT, unless it has been made by this command from the same inputs
# (`inputs`), whose hash is in RESULT.inputs. A directory made from other inputs is kept under another name, because
# programs that export refuse to write into it. RESULT appears whole, so a record that is written before it is enough.
made() {
  local result=$1 record=$1.inputs now kept
  shift
  ((DRY)) && { run "$@"; return; }
  now=$(RESULT=$result inputs "$@")
  if [[ -e $result && -f $record && $(< "$record") == "$now" ]]; then
    echo "$result exists"
    return
  fi
  if [[ -d $result ]]; then
    kept=$result.$(date +%Y%m%d-%H%M%S)
    echo "$result was made from other inputs, or by an earlier version; it is kept as $kept"
    mv "$result" "$kept"
  fi
  if [[ -e $result ]]; then
    rm -f "$record"
    run "$@"
    echo "$now" > "$record"
  else
    mkdir -p "$(dirname "$record")"
    echo "$now" > "$record"
    run "$@"
  fi
}

# step NAME RESULT COMMAND...: run a command under a heading, unless RESULT ('' = none) exists and was made from the same
# inputs. Appends "NAME, tab, seconds" to the file $TIMES.
step() {
  local name=$1 result=$2 start=$SECONDS
  shift 2
  say "$name"
  # A training compares its inputs itself.
  if [[ $result == */finished && -e $result ]]; then "$@"; return; fi
  if [[ -n $result ]]; then made "$result" "$@"; else "$@"; fi
  mkdir -p "$(dirname "$TIMES")"
  printf '%s\t%s\n' "$name" "$((SECONDS - start))" >> "$TIMES"
  printf '  %s seconds\n' "$((SECONDS - start))"
}

# How often a training has saved because it was asked to stop.
stops() { { [[ ! -f $1 ]] || cat "$1"; } | grep -c 'updates and ending' || true; }

# inputs ARGUMENT...: a hash of the arguments and of the content of the files and folders that they name; files above
# 64 MB are read only if they have changed. What the command writes (RESULT is in it), and the code, are left out.
inputs() {
  local word path skip=0
  for word in "$@"; do
    if ((skip)); then skip=0; continue; fi
    case $word in --text-state-cache | --tensorboard-logdir | --user-dir | --output) skip=1; continue ;; esac
    printf '%q\n' "$word"
    while IFS= read -rd : path; do
      [[ -e $path ]] || continue
      [[ -z ${RESULT:-} || ($RESULT != "$path" && $RESULT != "$path"/*) ]] || continue # what the command writes
      find -L "$path" -type f -size -64M -print0 | LC_ALL=C sort -z | xargs -0r sha256sum
      find -L "$path" -type f -size +63M -print0 | LC_ALL=C sort -z | xargs -0r "$PYTHON" -m mclip_fairseq.storage.hashes
    done <<< "$word:"
  done | sha256sum | cut -d ' ' -f 1
}

# train FOLDER OPTION...: fairseq-train into FOLDER, unless FOLDER is finished with the same options and inputs. The
# array TRAIN may name a launcher.
train() {
  local folder=$1 log=$1/train.log before trained='' now=''
  shift
  ((DRY)) || now=$(inputs "$@")
  if [[ -e $folder/finished ]]; then
    trained=$(< "$folder/finished")
    ((DRY)) || [[ -z $trained || $trained == "$now" ]] ||
      fail "$folder was trained with other data or options; move it away to train again"
    echo "$folder is finished"
    return 0
  fi
  ((DRY)) || mkdir -p "$folder"
  before=$(stops "$log")
  # A run that is asked to stop saves and exits with status 0. It is not finished, and no later stage may follow.
  ASKED=0
  trap 'ASKED=1' TERM USR1
  run "${TRAIN[@]}" "$@" --save-dir "$folder" --log-file "$log"
  if ((ASKED)) || [[ $(stops "$log") != "$before" ]]; then
    echo "$folder was asked to stop; run the same command again to continue"
    exit 0
  fi
  trap - TERM USR1
  ((DRY)) || echo "$now" > "$folder/finished"
}
TRAIN=(fairseq-train)

# stages "STAGE [STAGE]..." ARGUMENTS...: read --dry-run, --tiny, --gpus N and the stages of a recipe into DRY, TINY, GPUS,
# STAGES and the launcher TRAIN. A stage in brackets runs only if it is named.
stages() {
  local all=${1//[][]/} listed default=() stage
  read -ra listed <<< "$1"
  for stage in "${listed[@]}"; do [[ $stage == "["* ]] || default+=("$stage"); done
  shift
  TINY=0 GPUS=1
  while [[ ${1:-} == --* ]]; do
    case $1 in
      --help) usage "$0"; exit 0 ;;
      --dry-run) DRY=1 ;;
      --tiny) TINY=1 ;;
      --gpus) [[ ${2:-} =~ ^[1-9][0-9]*$ ]] || fail "--gpus needs a number"; GPUS=$2; shift ;;
      *) fail "unknown option $1; --help lists the options" ;;
    esac
    shift
  done
  STAGES=("$@")
  ((${#STAGES[@]})) || STAGES=("${default[@]}")
  for stage in "${STAGES[@]}"; do
    [[ " $all " == *" $stage "* ]] || fail "$stage is not a stage; name some of $all"
  done
  ((GPUS == 1)) || TRAIN=(torchrun --standalone --nproc-per-node "$GPUS" -m fairseq_cli.train)
  [[ -z ${LAUNCHER:-} ]] || read -ra TRAIN <<< "$LAUNCHER -m fairseq_cli.train"
  export TINY # recipes read it
}

# pieces TOKENIZER_DIR OUT FILE...: SentencePiece pieces of text files.
pieces() {
  local tokenizer=$1 out=$2
  shift 2
  run "$PYTHON" "$PREPROCESS/encode.py" --model "$tokenizer/sentencepiece.bpe.model" --output "$out" "$@"
}

# binarise TOKENIZER_DIR OPTION...: what fairseq-preprocess writes with the dictionary of the tokenizer.
binarise() {
  local tokenizer=$1
  shift
  run "$PYTHON" "$PREPROCESS/binarise.py" --dictionary "$tokenizer/dict.txt" "$@"
}

# check_xlmr DIR
check_xlmr() {
  local file
  [[ -n $1 ]] || fail "--xlmr is missing; name the folder with sentencepiece.bpe.model and dict.txt"
  for file in sentencepiece.bpe.model dict.txt; do
    [[ -f $1/$file ]] || fail "$1/$file: not found; --xlmr names the folder of XLM-R's release"
  done
}
