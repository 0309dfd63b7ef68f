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
export PYTHONUNBUFFERED=1
TIMES=$OUT/seconds.tsv # where step writes
mkdir -p "$OUT"
: > "$TIMES"

# part NAME COMMAND...: run one step of the tour; its output goes to a log.
part() { step "$1" '' run_to "$OUT/${1// /-}.log" "${@:2}"; }

C=$OUT/corpus T=$OUT/tokenizer

# 1. A corpus: drawings with English names, and the names in 14 languages as parallel text.
part "1 corpus" "$PYTHON" "$HERE/build_corpus.py" --output "$C" --seed "$SEED"

# 2. An English teacher. With real data this is CLIP, and there is nothing to train.
part "2 teacher" "$PYTHON" "$HERE/train_teacher.py" --corpus "$C" --output "$OUT/teacher" --seed "$SEED"

# 3. The teacher's features of every drawing and every English name, computed once.
paste "$C/captions/concepts.ids" "$C/captions/concepts.en" > "$C/captions/concepts.tsv"
part "3 image features" mclip-features --model "$OUT/teacher" --images "$C/images" --output "$OUT/features/image"
part "3 text features" mclip-features --model "$OUT/teacher" --captions "$C/captions/concepts.tsv" \
  --output "$OUT/features/text"

# 4. Text into fairseq's format. With XLM-R, use its tokenizer instead of training one. With 12,000 pieces, most names
# have one or two, which a small encoder learns far faster than spelling.
part "4 tokenizer" "$PYTHON" "$PREPROCESS/train_tokenizer.py" --vocabulary 12000 --output "$T" "$C"/names/*.txt
part "4 encode" "$PYTHON" "$PREPROCESS/encode.py" --model "$T/sentencepiece.bpe.model" --output "$OUT/pieces" \
  "$C"/parallel/* "$C"/captions/{train,valid}.en
# fairseq-preprocess for every pair, in one process.
part "4 binarise" "$PYTHON" "$PREPROCESS/binarise.py" --pieces "$OUT/pieces" --dictionary "$T/dict.txt" \
  --pairs "${OTHERS[@]/#/en-}" --output "$OUT/bin/parallel"
part "4 binarise captions" "$PYTHON" "$PREPROCESS/binarise.py" --pieces "$OUT/pieces" --dictionary "$T/dict.txt" \
  --captions en --output "$OUT/bin/captions"
cp "$C"/captions/*.en.ids "$OUT/bin/captions/"

# 5. MTE: the multilingual text encoder learns to translate, and maps translations close together. Then contrast
# alone, at a higher temperature, maps them closer still, so that what TriKD learns from English also holds for
# translations.
mte=(fairseq-train "$OUT/bin/parallel" --user-dir "$PLUGIN" --task mte --seed "$SEED"
  --langs "$LANGS" --lang-pairs "${PAIRS%,}"
  --arch mte_tiny --encoder-layers 2 --encoder-embed-dim 128 --encoder-ffn-embed-dim 256
  --decoder-layers 1 --decoder-ffn-embed-dim 256 --criterion mte
  --optimizer fused_adamw --clip-norm 1 --batch-size 512
  --disable-validation --no-epoch-checkpoints --num-workers 0 --log-format simple --log-interval 50 --cpu)
part "5 mte" "${mte[@]}" --both-directions --contrastive-weight 5 --contrastive-temperature 0.05 --dropout 0.1 \
  --lr 4e-3 --lr-scheduler inverse_sqrt --warmup-updates 60 --max-update 120 --save-dir "$OUT/mte1"
part "5 mte contrast" "${mte[@]}" --translation-weight 0 --contrastive-weight 1 --contrastive-temperature 0.15 \
  --dropout 0 --lr 6e-3 --lr-scheduler polynomial_decay --warmup-updates 30 --max-update 800 --total-num-update 800 \
  --finetune-from-model "$OUT/mte1/checkpoint_last.pt" --save-dir "$OUT/mte2"
part "5 extract" mclip-extract-mte "$OUT/mte2/checkpoint_last.pt" --tokenizer "$T" --output "$OUT/encoder"

# 6. TriKD: two light projectors learn from English pairs alone; the encoder's states are computed once. The projector
# reads the mean of the states, which is what step 5 aligned.
part "6 trikd" fairseq-train "$OUT/bin/captions" --user-dir "$PLUGIN" --task trikd --seed "$SEED" --langs en \
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

# 9. Search: an index of the drawings, made from their features, for the command line and a web page.
rm -rf "$OUT/index"
part "9 index" mclip-search build "$OUT/features/image" --images-root "$C/images" \
  --model "$OUT/trikd/checkpoint_last.pt" --teacher "$OUT/teacher" --output "$OUT/index"

printf '\n'
cat "$OUT/8-report.log"
SEARCH=$(command -v mclip-search) # a path, because the environment may not be active
SEARCH=${SEARCH#"$PWD"/}
printf '\nSearch the drawings in any of the languages:\n  %s query %s Schmetterling\n  %s serve %s\n' \
  "$SEARCH" "$OUT/index" "$SEARCH" "$OUT/index"
