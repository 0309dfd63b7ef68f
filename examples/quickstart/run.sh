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
PAIRS=$(printf 'en-%s,' "${OTHERS[@]}")
export PYTHONUNBUFFERED=1 HF_HUB_DISABLE_PROGRESS_BARS=1 TRANSFORMERS_VERBOSITY=error
TIMES=$OUT/seconds.tsv # where step writes
mkdir -p "$OUT"
: > "$TIMES"

# part NAME COMMAND...: run one step of the tour; its output goes to a log.
part() { step "$1" '' run_to "$OUT/${1// /-}.log" "${@:2}"; }

C=$OUT/corpus T=$OUT/tokenizer
KEYWORDS=${KEYWORDS:-$(dirname "$OUT")/emoji-keywords} # fetched once, for all runs

# 1. A corpus: drawings with English names and keywords, and both in 14 languages as parallel text.
keywords=(--keywords "$KEYWORDS")
(part "1 keywords" bash "$HERE/fetch_keywords.sh" "$KEYWORDS") || {
  echo "  Without keywords, the corpus has names alone, and everyday words find less."
  keywords=()
}
part "1 corpus" "$PYTHON" "$HERE/build_corpus.py" "${keywords[@]}" --output "$C" --seed "$SEED"

# 2. An English teacher. With real data this is CLIP, and there is nothing to train.
part "2 teacher" "$PYTHON" "$HERE/train_teacher.py" --corpus "$C" --output "$OUT/teacher" --seed "$SEED"

# 3. The teacher's features of every drawing and every English name, computed once.
paste "$C/captions/concepts.ids" "$C/captions/concepts.en" > "$C/captions/concepts.tsv"
part "3 image features" mclip-features --model "$OUT/teacher" --images "$C/images" --output "$OUT/features/image"
part "3 text features" mclip-features --model "$OUT/teacher" --captions "$C/captions/concepts.tsv" \
  --output "$OUT/features/text"

# 4. Text into fairseq's format: names, which count twice, and keywords. With XLM-R, use its tokenizer instead of training
# one. With 32,000 pieces, most words have one or two, which a small encoder learns far faster than spelling. People write
# a name at the start of a sentence or, in German, always with a capital letter: --ignore-case folds them.
text=$OUT/text
mkdir -p "$text"
for lang in "${OTHERS[@]}"; do
  for side in en "$lang"; do
    names=$C/parallel/train.en-$lang.$side
    cat "$names" "$names" "$C/keywords/train.en-$lang.$side" > "$text/train.en-$lang.$side"
    cp "$C/parallel/valid.en-$lang.$side" "$text/"
  done
done
for file in en en.ids; do
  cat "$C"/captions/{train,train,keywords}."$file" > "$text/train.$file"
  cp "$C/captions/valid.$file" "$text/"
done
part "4 tokenizer" "$PYTHON" "$PREPROCESS/train_tokenizer.py" --ignore-case --vocabulary 32000 --output "$T" \
  "$C"/words/*.txt
part "4 encode" "$PYTHON" "$PREPROCESS/encode.py" --model "$T/sentencepiece.bpe.model" --output "$OUT/pieces" \
  "$text"/*.{en,es,ja,ko,pt,it,fr,de,fa,id,zh,ru,tr,ar}
mkdir -p "$OUT/text.all"
cp "$C/captions/all.en" "$OUT/text.all/train.en"
part "4 encode all captions" "$PYTHON" "$PREPROCESS/encode.py" --model "$T/sentencepiece.bpe.model" \
  --output "$OUT/pieces.all" "$OUT/text.all/train.en"
# fairseq-preprocess for every pair, in one process.
part "4 binarise" "$PYTHON" "$PREPROCESS/binarise.py" --pieces "$OUT/pieces" --dictionary "$T/dict.txt" \
  --pairs "${OTHERS[@]/#/en-}" --output "$OUT/bin/parallel"
part "4 binarise captions" "$PYTHON" "$PREPROCESS/binarise.py" --pieces "$OUT/pieces" --dictionary "$T/dict.txt" \
  --captions en --output "$OUT/bin/captions"
cp "$text"/*.en.ids "$OUT/bin/captions/"
part "4 binarise all captions" "$PYTHON" "$PREPROCESS/binarise.py" --pieces "$OUT/pieces.all" \
  --dictionary "$T/dict.txt" --captions en --output "$OUT/bin/all"
cp "$C/captions/all.en.ids" "$OUT/bin/all/train.en.ids"

# 5. MTE: the multilingual text encoder learns to translate, and maps translations close together. Then contrast
# alone, at a higher temperature, maps them closer still, so that what TriKD learns from English also holds for
# translations.
mte=(fairseq-train "$OUT/bin/parallel" --user-dir "$PLUGIN" --task mte --seed "$SEED"
  --langs "$LANGS" --lang-pairs "${PAIRS%,}"
  --arch mte_tiny --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 256
  --decoder-layers 1 --decoder-ffn-embed-dim 256 --criterion mte
  --optimizer fused_adamw --clip-norm 1
  --disable-validation --no-epoch-checkpoints --num-workers 0 --log-format simple --log-interval 10 --cpu)
part "5 mte" "${mte[@]}" --batch-size 256 --both-directions --contrastive-weight 5 --contrastive-temperature 0.05 --dropout 0.1 \
  --lr 4e-3 --lr-scheduler inverse_sqrt --warmup-updates 30 --max-update 40 --save-dir "$OUT/mte1"
part "5 mte contrast" "${mte[@]}" --batch-size 512 --translation-weight 0 --contrastive-weight 1 --contrastive-temperature 0.15 \
  --dropout 0 --lr 6e-3 --lr-scheduler polynomial_decay --warmup-updates 30 --max-update 750 --total-num-update 750 \
  --finetune-from-model "$OUT/mte1/checkpoint_last.pt" --save-dir "$OUT/mte2"
part "5 extract" mclip-extract-mte "$OUT/mte2/checkpoint_last.pt" --tokenizer "$T" --output "$OUT/encoder"

# 6. TriKD: two light projectors learn from English pairs alone; the encoder's states are computed once. The projector
# reads the mean of the states, which is what step 5 aligned.
trikd=(fairseq-train --user-dir "$PLUGIN" --task trikd --seed "$SEED" --langs en
  --image-features "$OUT/features/image" --text-state-cache "$OUT/states"
  --arch mclip_tiny --text-encoder "$OUT/encoder" --teacher "$OUT/teacher" --pooling mean
  --projector-layers 1 --projector-ffn-embed-dim 2048 --projector-attention-heads 4
  --dropout 0.2 --criterion trikd --positives image
  --optimizer fused_adamw --lr-scheduler polynomial_decay --clip-norm 1 --batch-size 512
  --no-epoch-checkpoints --num-workers 0 --log-format simple --log-interval 50 --cpu)
part "6 trikd" "${trikd[@]}" "$OUT/bin/captions" --text-features "$OUT/features/text" --text-text-weight 1 \
  --lr 3e-3 --warmup-updates 50 --max-update 900 --total-num-update 900 \
  --validate-interval-updates 300 --save-interval-updates 300 --save-dir "$OUT/trikd"

# 7. Retrieval in every language, with mCLIP and with the teacher's own text encoder.
for gallery in seen held_out_artist held_out_concepts; do
  captions=()
  for lang in en "${OTHERS[@]}"; do captions+=("$lang=$C/gallery/$gallery.$lang"); done
  for system in mclip teacher; do
    model=$OUT/teacher
    [[ $system == mclip ]] && model=$OUT/trikd/checkpoint_last.pt
    part "7 evaluate $gallery $system" mclip-evaluate --model "$model" --captions "${captions[@]}" \
      --ids "$C/gallery/$gallery.ids" --features "$OUT/features/image" --output "$OUT/evaluation/$gallery.$system"
  done
done

# 8. All results on one page: tables, plots, and six queries in six languages.
part "8 report" "$PYTHON" "$HERE/report.py" --corpus "$C" --evaluations "$OUT/evaluation" \
  --model "$OUT/trikd/checkpoint_last.pt" --seconds "$OUT/seconds.tsv" --seed "$SEED" --output "$OUT"

# 9. Search: before the model serves, it also sees the drawings that were held out from it, as one would do with real
# data. The results above are from before. Then an index of all drawings, for the command line and a web page.
part "9 trikd on all" "${trikd[@]}" "$OUT/bin/all" --text-text-weight 0 --disable-validation \
  --finetune-from-model "$OUT/trikd/checkpoint_last.pt" \
  --lr 1e-3 --warmup-updates 10 --max-update 200 --total-num-update 200 --save-dir "$OUT/search"
rm -rf "$OUT/index"
part "9 index" mclip-search build "$OUT/features/image" --images-root "$C/images" \
  --model "$OUT/search/checkpoint_last.pt" --teacher "$OUT/teacher" --output "$OUT/index"
cut -f 1,2 "$HERE/queries.tsv" > "$OUT/queries.tsv"                       # of the page's start screen
paste "$C/captions/all.en.ids" "$C/captions/all.en" > "$OUT/captions.tsv" # under the drawings

printf '\n'
cat "$OUT/8-report.log"
SEARCH=$(command -v mclip-search) # a path, because the environment may not be active
SEARCH=${SEARCH#"$PWD"/}
printf '\nSearch the drawings in any of the languages:\n  %s query %s Schmetterling\n' "$SEARCH" "$OUT/index"
printf '  %s serve %s --examples %s --captions %s\n' "$SEARCH" "$OUT/index" "$OUT/queries.tsv" "$OUT/captions.tsv"
