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
command -v fairseq-train > /dev/null || PATH=$ROOT/.venv/bin:$PATH
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

C=$OUT/corpus T=$OUT/tokenizer

# 1. A corpus: drawings with English names, and the names in 14 languages as parallel text.
step "1 corpus" python "$HERE/build_corpus.py" --output "$C" --seed "$SEED"

# 2. An English teacher. With real data this is CLIP, and there is nothing to train.
step "2 teacher" python "$HERE/train_teacher.py" --corpus "$C" --output "$OUT/teacher" --seed "$SEED"

# 3. What the teacher sees in every drawing and in every English name, computed once.
paste "$C/captions/concepts.ids" "$C/captions/concepts.en" > "$C/captions/concepts.tsv"
step "3 image features" mclip-features --model "$OUT/teacher" --images "$C/images" --output "$OUT/features/image"
step "3 text features" mclip-features --model "$OUT/teacher" --captions "$C/captions/concepts.tsv" \
  --output "$OUT/features/text"

# 4. Text into fairseq's format. With XLM-R, take its tokenizer instead of training one. Twelve thousand pieces leave most
# names in one or two, which a small encoder learns far faster than spelling.
step "4 tokenizer" python "$ROOT/preprocess/train_tokenizer.py" --vocabulary 12000 --output "$T" "$C"/names/*.txt
step "4 encode" python "$ROOT/preprocess/encode.py" --model "$T/sentencepiece.bpe.model" --output "$OUT/pieces" \
  "$C"/parallel/* "$C"/captions/{train,valid}.en
# fairseq-preprocess for every pair, in one process.
step "4 binarise" python "$ROOT/preprocess/binarise.py" --pieces "$OUT/pieces" --dictionary "$T/dict.txt" \
  --pairs "${OTHERS[@]/#/en-}" --output "$OUT/bin/parallel"
step "4 binarise captions" python "$ROOT/preprocess/binarise.py" --pieces "$OUT/pieces" --dictionary "$T/dict.txt" \
  --captions en --output "$OUT/bin/captions"
cp "$C"/captions/*.en.ids "$OUT/bin/captions/"

# 5. MTE: the multilingual text encoder learns to translate and to put translations close together; then the contrast
# alone, at a higher temperature, draws them closer still: what TriKD learns of English has to hold for their neighbours.
mte=(fairseq-train "$OUT/bin/parallel" --user-dir "$PLUGIN" --task mte --seed "$SEED"
  --langs "$LANGS" --lang-pairs "${PAIRS%,}"
  --arch mte_tiny --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 256
  --decoder-layers 1 --decoder-ffn-embed-dim 256 --criterion mte
  --optimizer fused_adamw --clip-norm 1 --batch-size 512
  --disable-validation --no-epoch-checkpoints --num-workers 0 --log-format simple --log-interval 50 --cpu)
step "5 mte" "${mte[@]}" --both-directions --contrastive-weight 5 --contrastive-temperature 0.05 --dropout 0.1 \
  --lr 4e-3 --lr-scheduler inverse_sqrt --warmup-updates 60 --max-update 120 --save-dir "$OUT/mte1"
step "5 mte contrast" "${mte[@]}" --translation-weight 0 --contrastive-weight 1 --contrastive-temperature 0.15 --dropout 0 \
  --lr 6e-3 --lr-scheduler polynomial_decay --warmup-updates 30 --max-update 800 --total-num-update 800 \
  --finetune-from-model "$OUT/mte1/checkpoint_last.pt" --save-dir "$OUT/mte2"
step "5 extract" mclip-extract-mte "$OUT/mte2/checkpoint_last.pt" --tokenizer "$T" --output "$OUT/encoder"

# 6. TriKD: two light projectors learn from English pairs alone; the encoder's states are computed once. The projector
# sees the mean of the states, which is what step 5 has aligned.
step "6 trikd" fairseq-train "$OUT/bin/captions" --user-dir "$PLUGIN" --task trikd --seed "$SEED" --langs en \
  --image-features "$OUT/features/image" --text-features "$OUT/features/text" \
  --text-state-cache "$OUT/states" \
  --arch mclip_tiny --text-encoder "$OUT/encoder" --teacher "$OUT/teacher" --pooling mean \
  --projector-layers 1 --projector-ffn-embed-dim 2048 --projector-attention-heads 4 --dropout 0.2 \
  --criterion trikd --text-text-weight 1 --positives image \
  --optimizer fused_adamw --lr 3e-3 --lr-scheduler polynomial_decay --warmup-updates 50 --clip-norm 1 \
  --batch-size 512 --max-update 420 --total-num-update 420 \
  --validate-interval 20 --save-interval 20 --no-epoch-checkpoints \
  --num-workers 0 \
  --save-dir "$OUT/trikd" --log-format simple --log-interval 50 --cpu

# 7. Retrieval in every language, by mCLIP and by the teacher's own text encoder.
for gallery in seen held_out_artist held_out_concepts; do
  captions=()
  for lang in en "${OTHERS[@]}"; do captions+=("$lang=$C/gallery/$gallery.$lang"); done
  for system in mclip teacher; do
    model=$OUT/teacher
    [[ $system == mclip ]] && model=$OUT/trikd/checkpoint_last.pt
    step "7 evaluate $gallery $system" mclip-evaluate --model "$model" --captions "${captions[@]}" \
      --ids "$C/gallery/$gallery.ids" --features "$OUT/features/image" --output "$OUT/evaluation/$gallery.$system"
  done
done

# 8. All results in one page: the table, plots, and six queries in six languages.
step "8 report" python "$HERE/report.py" --corpus "$C" --evaluations "$OUT/evaluation" \
  --model "$OUT/trikd/checkpoint_last.pt" --seconds "$OUT/seconds.tsv" --seed "$SEED" --output "$OUT"

# 9. Search: an index of the drawings, from the features that are there, for the command line and for a page.
rm -rf "$OUT/index"
step "9 index" mclip-search build "$OUT/features/image" --images-root "$C/images" \
  --model "$OUT/trikd/checkpoint_last.pt" --teacher "$OUT/teacher" --output "$OUT/index"

printf '\n'
cat "$OUT/8-report.log"
SEARCH=$(command -v mclip-search) # which may not be found by name where the environment is not active
SEARCH=${SEARCH#"$PWD"/}
printf '\nSearch the drawings in any of the languages:\n  %s query %s Schmetterling\n  %s serve %s\n' \
  "$SEARCH" "$OUT/index" "$SEARCH" "$OUT/index"
