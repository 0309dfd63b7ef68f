#!/usr/bin/env bash
# A tour of mclip_fairseq in ten minutes on two CPU cores. Images are trained with English names only, yet thirteen
# other languages find them. Every command is the one you would run on real data.
#
#   examples/quickstart/run.sh [OUTPUT]        (default: runs/quickstart; SEED=2 sets another seed)
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

[[ ${1:-} != --help ]] || { usage "$0"; exit 0; }
OUT=${1:-runs/quickstart}
SEED=${SEED:-1}
HERE=$ROOT/examples/quickstart
OTHERS=(es ja ko pt it fr de fa id zh ru tr ar)
LANGS=en,$(IFS=,; echo "${OTHERS[*]}")
export PYTHONUNBUFFERED=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error
TIMES=$OUT/seconds.tsv # where step writes
mkdir -p "$OUT"
: > "$TIMES"

# part NAME COMMAND...: run one step of the tour; its output goes to a log.
part() { step "$1" '' run_to "$OUT/${1// /-}.log" "${@:2}"; }

C=$OUT/corpus T=$OUT/tokenizer B=$OUT/bin
KEYWORDS=${KEYWORDS:-$(dirname "$OUT")/emoji-keywords} # fetched once, for all runs

# 1. A corpus: drawings with English names and keywords, and both in 14 languages as parallel text.
keywords=(--keywords "$KEYWORDS")
(part "1 keywords" bash "$HERE/fetch_keywords.sh" "$KEYWORDS") || {
  echo "  Without keywords, the corpus has names alone, and everyday words find less."
  keywords=()
}
part "1 corpus" "$PYTHON" "$HERE/build_corpus.py" "${keywords[@]}" --output "$C" --seed "$SEED"

# 2. An English teacher, which learns from names. With real data this is CLIP, and there is nothing to train.
part "2 teacher" "$PYTHON" "$HERE/train_teacher.py" --corpus "$C" --output "$OUT/teacher-names" --seed "$SEED"

# 3. Text into fairseq's format, in six folders: English texts with the drawings of training, and with all drawings;
# English texts, names and keywords in every language, each with the English text that it translates; and short names
# again. Every line has its ids: of the drawing, if any, and of the English text. With XLM-R, use its tokenizer instead
# of training one. Here every word is a piece, which a small encoder learns far faster than spelling. People write a
# name at the start of a sentence or, in German, always with a capital letter: --ignore-case folds them.
text=$OUT/text
mkdir -p "$text"/{pairs,all,english,names,keywords,short}
ids_of() { tr ' ' '_' < "$1"; } # of English texts
with_ids() { # with_ids FOLDER SPLIT NAME...: captions of the corpus and their drawings, under new ids
  local folder=$text/$1 split=$2 names=("${@:3}")
  cat "${names[@]/%/.en}" > "$folder/$split.en"
  paste <(cat "${names[@]/%/.en.ids}" | cut -f 1) <(ids_of "$folder/$split.en") > "$folder/$split.en.ids"
}
translations() { # translations FILE TEXTS ENGLISH: texts that have no drawing, and the English ones that they translate
  cp "$2" "$text/$1"
  ids_of "$3" | sed 's/^/-\t/' > "$text/$1.ids"
}
with_ids pairs train "$C"/captions/{train,train,keywords}
with_ids pairs valid "$C/captions/valid"
with_ids all train "$C/captions/all"
for lang in "${OTHERS[@]}"; do
  translations "names/train.$lang" "$C/parallel/train.en-$lang".{"$lang",en}
  translations "keywords/train.$lang" "$C/keywords/train.en-$lang".{"$lang",en}
done
# An English text is its own translation, and a rare word that of the nearest common one.
sort -u "$text"/{pairs,all}/*.en "$C"/{parallel,keywords}/train.en-*.en > "$text/english.txt"
paste <(ids_of "$text/english.txt") "$text/english.txt" > "$text/english.tsv"
translations english/train.en <(cat "$text/english.txt" "$C/keywords/train.en-rare.rare") \
  <(cat "$text/english.txt" "$C/keywords/train.en-rare.en")
# For the search, short names count more, because people type a word or two: one word five times, two words twice.
# Otherwise pez (fish) drowns in pez tropical, pez globo and others.
for lang in en "${OTHERS[@]}"; do
  kind=names
  [[ $lang != en ]] || kind=english
  paste "$text/$kind/train.$lang"{,.ids} |
    awk -F '\t' '{ times = 8 - 3 * split($1, words, " "); while (times-- > 0) print }' > "$text/short.tsv"
  cut -f 1 "$text/short.tsv" > "$text/short/train.$lang"
  cut -f 2- "$text/short.tsv" > "$text/short/train.$lang.ids"
done
part "3 tokenizer" "$PYTHON" "$PREPROCESS/train_tokenizer.py" --ignore-case --whole-words --vocabulary 80000 \
  --output "$T" "$C"/words/*.txt
for kind in pairs all english names keywords short; do
  case $kind in
    names | keywords) languages=("${OTHERS[@]}") ;;
    short) languages=(en "${OTHERS[@]}") ;;
    *) languages=(en) ;;
  esac
  part "3 encode $kind" "$PYTHON" "$PREPROCESS/encode.py" --model "$T/sentencepiece.bpe.model" \
    --output "$OUT/pieces/$kind" "$text/$kind"/*.??
  part "3 binarise $kind" "$PYTHON" "$PREPROCESS/binarise.py" --pieces "$OUT/pieces/$kind" --dictionary "$T/dict.txt" \
    --captions "${languages[@]}" --output "$B/$kind"
  cp "$text/$kind"/*.ids "$B/$kind/"
done

# 4. From here on, two models are trained side by side, each on half of the cores: one that is evaluated, and one for
# the search, which sees all drawings, also those that are held out from the first, as one would do with real data.
# A teacher's text tower learns keywords over the drawings that its model sees; then its features of every drawing and
# every English text are computed once.
tune_teacher() { # tune_teacher STEP DIRECTORY OPTION...
  part "$1 tune teacher" "$PYTHON" "$HERE/tune_teacher.py" --teacher "$OUT/teacher-names" --corpus "$C" --seed "$SEED" \
    --output "$2" "${@:3}"
}
features() { # features STEP TEACHER DIRECTORY
  part "$1 image features" mclip-features --model "$2" --images "$C/images" --output "$3/image"
  part "$1 text features" mclip-features --model "$2" --captions "$text/english.tsv" --output "$3/text"
}
# One stage, the best recipe of docs/results.md: a multilingual encoder of one layer learns the teacher's own space. A
# text in any language learns the teacher's feature of its English translation, with a squared distance; English texts
# also learn to find their drawing in the batch, with a contrastive loss. No drawing is paired with another language.
trikd() { # trikd STEP UPDATES TEACHER FEATURES DATA OPTION...
  part "$1" fairseq-train "$5" --user-dir "$PLUGIN" --task trikd --seed "$SEED" --langs "$LANGS" \
    --teacher "$3" --image-features "$4/image" --text-features "$4/text" \
    --arch mclip_tiny --text-tokenizer "$T" --freeze-text none --encoder-layers 1 --encoder-embed-dim 128 \
    --encoder-ffn-embed-dim 256 --encoder-attention-heads 4 --pooling mean --dropout 0 \
    --projector-layers 0 --projector-start identity --fixed-target \
    --criterion trikd --positives image --image-text-weight 1 --text-text-loss mse --text-text-weight 10 \
    --optimizer fused_adamw --lr 2e-3 --lr-scheduler polynomial_decay --warmup-updates 50 --clip-norm 1 \
    --batch-size 512 --max-update "$2" --total-num-update "$2" --no-epoch-checkpoints --num-workers 0 \
    --log-format simple --log-interval 50 --cpu "${@:6}"
}
mix() { # mix FOLDER...: several folders as one data set; one that is named twice counts twice
  local IFS=:
  echo "${*/#/$B/}"
}
S=$OUT/search
search_model() {
  TIMES=$S/seconds.tsv
  tune_teacher 8 "$S/teacher" --captions all
  features 8 "$S/teacher" "$S/features"
  trikd "8 trikd" 5600 "$S/teacher" "$S/features" "$(mix all english names short keywords)" \
    --save-dir "$S" --disable-validation
}
mkdir -p "$S"
THREADS=$("$PYTHON" -c 'from mclip_fairseq.storage.machine import cores; print(cores() // 2 or 1)')
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$THREADS}
aside "$OUT/8-search.log" search_model # printed in its place, under 8

# Names that the teacher has learned keep their features.
tune_teacher 4 "$OUT/teacher" --captions train keywords --keep train
features 4 "$OUT/teacher" "$OUT/features"

# 5. The multilingual model that is evaluated.
trikd "5 trikd" 5000 "$OUT/teacher" "$OUT/features" "$(mix pairs pairs english english names names names keywords)" \
  --save-dir "$OUT/trikd" --valid-langs en --validate-interval-updates 2500 --save-interval-updates 2500
part "5 extract" mclip-extract-mte "$OUT/trikd/checkpoint_last.pt" --tokenizer "$T" --output "$OUT/encoder"

# 6. Retrieval in every language, with mCLIP and with the teacher's own text encoder.
for gallery in seen held_out_artist held_out_concepts; do
  captions=()
  for lang in en "${OTHERS[@]}"; do captions+=("$lang=$C/gallery/$gallery.$lang"); done
  for system in mclip teacher; do
    model=$OUT/teacher
    [[ $system == mclip ]] && model=$OUT/trikd/checkpoint_last.pt
    part "6 evaluate $gallery $system" mclip-evaluate --model "$model" --captions "${captions[@]}" \
      --ids "$C/gallery/$gallery.ids" --features "$OUT/features/image" --output "$OUT/evaluation/$gallery.$system"
  done
done

# 7. All results on one page: tables, plots, and six queries in six languages.
part "7 report" "$PYTHON" "$HERE/report.py" --corpus "$C" --evaluations "$OUT/evaluation" \
  --model "$OUT/trikd/checkpoint_last.pt" --seconds "$OUT/seconds.tsv" --seed "$SEED" --output "$OUT"

# 8. Search: an index of all drawings, for the command line and a web page. The results above are not of its model.
step "8 search model" '' rejoin
rm -rf "$OUT/index"
part "8 index" mclip-search build "$S/features/image" --images-root "$C/images" \
  --model "$S/checkpoint_last.pt" --teacher "$S/teacher" --output "$OUT/index"
cut -f 1,2 "$HERE/queries.tsv" > "$OUT/queries.tsv"                       # of the page's start screen
paste <(cut -f 1 "$C/captions/all.en.ids") "$C/captions/all.en" > "$OUT/captions.tsv" # under the drawings

printf '\n'
cat "$OUT/7-report.log"
SEARCH=$(command -v mclip-search) # a path, because the environment may not be active
SEARCH=${SEARCH#"$PWD"/}
printf '\nSearch the drawings in any of the languages:\n  %s query %s Schmetterling\n' "$SEARCH" "$OUT/index"
printf '  %s serve %s --examples %s --captions %s\n' "$SEARCH" "$OUT/index" "$OUT/queries.tsv" "$OUT/captions.tsv"
