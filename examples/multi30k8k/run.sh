#!/usr/bin/env bash
# Multilingual image-text models on Multi30K captions and Flickr8k photos, small enough for a CPU.
#
#   examples/multi30k8k/run.sh DATA [OUTPUT]
#
# DATA is the multi30k8k directory (see README.md). One run trains one variant with one seed:
#
#   SEED=1 VARIANT=teacher-space examples/multi30k8k/run.sh DATA runs/multi30k8k
#
# VARIANT is one of
#   teacher-space   the default and the best: a text encoder of one layer learns the teacher's own space, by the distance
#                   to the teacher's text features in every language and the contrast of English captions with photos;
#                   no MTE, 14,000 pieces, batches of 128
#   trikd-after     TriKD on English pairs after teacher-space with the same seed, whose encoder stays as it is
#   m-clip          M-CLIP's method with the encoder, pieces, batches and updates of teacher-space
#   mclip           the method as published, with a stage between: MTE; then the encoder learns the teacher's features on
#                   the parallel captions and English pairs; then TriKD on English pairs
#   published       as published: MTE, for as long as the first two stages of mclip together, then TriKD
#   distil          mclip without MTE
#   no-contrastive  mclip without the contrastive term of MTE
#   no-translation  mclip without the translation term of MTE
#   no-text-text    mclip without the text-text term of TriKD (reuses the encoder of mclip with the same seed)
#   no-image-text   mclip without the image-text term of TriKD (likewise)
#   finetune-en, finetune-de, ..., finetune-all  mclip, fine-tuned on the captions of one language or all
#                   (positives by image)
#   stages          the paper's two stages of MTE from the encoder of mclip: the decoder alone, then both with contrast,
#                   and, for comparison, as many updates without; translation and Tatoeba-style retrieval after each
#   teacher-learning  M-CLIP: mean squared error to the teacher's text features, for as long as mclip
#   altclip         AltCLIP, both stages, with the sizes of teacher-space and as many updates
#   mla             MLA, both stages, over a small English CLIP that is trained first
#   ccrk            CCRK on the photos with their captions in four languages, re-ranking the 16 nearest
#   contrastive-tension  Contrastive Tension from the encoder of m-clip with the same seed; texts alone are evaluated
# README.md says what the last four have instead of pretrained parts.
# SCALE multiplies all numbers of updates (1: the published table; 0.01: a smoke test). TRIAL names a trial of other
# options of teacher-space or trikd-after, which OPTIONS adds:
#   TRIAL=structure OPTIONS="--structure-weight 50" examples/multi30k8k/run.sh DATA
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=../recipe.sh
source "$(dirname "${BASH_SOURCE[0]}")/../recipe.sh"

[[ $# -gt 0 && $1 != --help ]] || { usage "$0"; exit "$(($# < 1))"; }
DATA=$1
OUT=${2:-runs/multi30k8k}
SEED=${SEED:-1}
VARIANT=${VARIANT:-teacher-space}
LANGS=en,de,fr,cs
# Pieces of the tokenizer; each number has its data directory.
PIECES=10000 TEXT=$OUT/data
case $VARIANT in
  teacher-space | trikd-after | m-clip | altclip | mla | ccrk | contrastive-tension) PIECES=14000 TEXT=$OUT/data-14000 ;;
esac
[[ -z ${OPTIONS:-} || -n ${TRIAL:-} && $VARIANT =~ ^(teacher-space|trikd-after)$ ]] ||
  fail "OPTIONS are options of a TRIAL of teacher-space or trikd-after; name the trial, or leave them out"
read -ra OPTIONS <<< "${OPTIONS:-}"
RUN=$OUT/$VARIANT${TRIAL:+-$TRIAL}-$SEED
TIMES=$RUN/seconds.tsv # where step writes

updates() { awk -v n="$1" -v s="${SCALE:-1}" 'BEGIN { u = int(n * s); print (u < 2 ? 2 : u) }'; }

# ---------------------------------------------------------------- data, once for all variants and seeds
prepare_data() {
  local tokenizer=$TEXT/tokenizer folder folders=(parallel pairs pairs5 photos)
  run "$PYTHON" "$ROOT/examples/multi30k8k/prepare.py" "$DATA" "$TEXT"
  run "$PYTHON" "$PREPROCESS/train_tokenizer.py" --vocabulary "$PIECES" --output "$tokenizer" \
    "$TEXT"/text/parallel/train.{en,de,fr,cs}
  for folder in "${folders[@]}"; do
    pieces "$tokenizer" "$TEXT/pieces/$folder" "$TEXT/text/$folder"/*.{en,de,fr,cs}
  done
  binarise "$tokenizer" --pieces "$TEXT/pieces/parallel" --captions en de fr cs --splits train \
    --output "$TEXT/bin/parallel"
  binarise "$tokenizer" --pieces "$TEXT/pieces/parallel" --captions cs --splits train --output "$TEXT/bin/czech"
  binarise "$tokenizer" --pieces "$TEXT/pieces/pairs" --captions en de fr cs --output "$TEXT/bin/pairs"
  binarise "$tokenizer" --pieces "$TEXT/pieces/pairs5" --captions en --output "$TEXT/bin/pairs5"
  binarise "$tokenizer" --pieces "$TEXT/pieces/photos" --captions en de fr cs --output "$TEXT/bin/photos"
  # The pairs of MTE are for the published method and its variants alone.
  [[ $PIECES != 10000 ]] ||
    binarise "$tokenizer" --pieces "$TEXT/pieces/parallel" --pairs en-de en-fr en-cs --output "$TEXT/bin/mte"
  for folder in "${folders[@]}"; do
    cp "$TEXT/text/$folder"/*.ids "$TEXT/bin/$folder/"
  done
  cp "$TEXT/text/parallel/train.cs.ids" "$TEXT/bin/czech/"
  touch "$TEXT/prepared"
}

# ---------------------------------------------------------------- the stages
SIZES=(--encoder-layers 2 --encoder-embed-dim 256 --encoder-ffn-embed-dim 512 --encoder-attention-heads 4)
LOGGING=(--log-format simple --log-interval 50 --no-epoch-checkpoints --disable-validation --num-workers 0)
FEATURES=(--image-features "$TEXT/features/image" --text-features "$TEXT/features/text")

# train_for UPDATES WARMUP FOLDER OPTION...: fairseq-train with a learning rate that decays to 0 over the updates.
train_for() {
  local updates warmup=$2 folder=$3
  updates=$(updates "$1")
  shift 3
  ((warmup < updates)) || warmup=1
  train "$folder" "$@" --user-dir "$PLUGIN" --seed "$SEED" --cpu --optimizer fused_adamw --clip-norm 1 \
    --lr-scheduler polynomial_decay --warmup-updates "$warmup" --max-update "$updates" --total-num-update "$updates" \
    "${LOGGING[@]}"
}

ARCHITECTURE=(--arch mte_tiny "${SIZES[@]}" --decoder-layers 1 --decoder-ffn-embed-dim 512 --decoder-attention-heads 4)
mte() { # mte UPDATES DIRECTORY [OPTION...]: translation and contrast on the parallel captions
  local count=$1 folder=$2
  shift 2
  train_for "$count" 40 "$folder" "$TEXT/bin/mte" --task mte --langs "$LANGS" --lang-pairs en-de,en-fr,en-cs \
    --both-directions "${ARCHITECTURE[@]}" --dropout 0 --criterion mte --contrastive-weight 3 \
    --contrastive-temperature 0.1 --lr 2e-3 --batch-size 256 "$@"
}

# guide ENCODER DIRECTORY: captions of every language learn the teacher's features of their English caption, and English
# captions those of their photo too. ENCODER is empty for random weights.
guide() {
  train_for 900 100 "$2" "$TEXT/bin/pairs:$TEXT/bin/pairs5:$TEXT/bin/parallel" --task trikd --langs "$LANGS" \
    "${FEATURES[@]}" --arch mclip_tiny --text-encoder "$1" --text-tokenizer "$TEXT/tokenizer" --freeze-text none \
    "${SIZES[@]}" --projector-layers 0 --pooling mean --dropout 0 --criterion trikd --positives image \
    --image-text-weight 1 --text-text-weight 1 --text-text-scale 8 --lr 2e-3 --batch-size 512
}

# teacher_space DIRECTORY: one stage in the space of the teacher. Parallel captions come twice and the Czech ones a third
# time, because English has the photos' captions besides.
MIXED=$TEXT/bin/pairs:$TEXT/bin/pairs5:$TEXT/bin/parallel:$TEXT/bin/parallel:$TEXT/bin/czech
SMALL=("${SIZES[@]}" --encoder-layers 1)
teacher_space() {
  train_for 2400 200 "$1" "$MIXED" --task trikd --langs "$LANGS" "${FEATURES[@]}" \
    --arch mclip_tiny --text-tokenizer "$TEXT/tokenizer" --freeze-text none "${SMALL[@]}" --pooling mean --dropout 0 \
    --projector-layers 0 --projector-start identity --fixed-target --criterion trikd --positives image \
    --image-text-weight 1 --text-text-loss mse --text-text-weight 10 --lr 1.5e-3 --batch-size 128 "${OPTIONS[@]}"
}

trikd() { # trikd ENCODER DIRECTORY [OPTION...]: English image-caption pairs only, the encoder frozen
  local encoder=$1 folder=$2
  shift 2
  train_for 300 50 "$folder" "$TEXT/bin/pairs:$TEXT/bin/pairs5" --task trikd --langs en "${FEATURES[@]}" \
    --arch mclip_tiny --text-encoder "$encoder" --pooling mean --projector-layers 1 --projector-ffn-embed-dim 1024 \
    --projector-attention-heads 4 --dropout 0.1 --criterion trikd --positives image \
    --text-text-weight 1 --text-text-scale 8 --text-state-cache "$OUT/states" --text-state-dtype float16 \
    --lr 1e-3 --batch-size 512 "$@"
}

finetune() { # finetune CHECKPOINT LANGUAGES DIRECTORY: train the projectors further, on captions of these languages
  local data=$TEXT/bin/photos
  [[ ,$2, != *,en,* ]] || data+=:$TEXT/bin/pairs5
  train_for 100 20 "$3" "$data" --task trikd --langs "$2" "${FEATURES[@]}" \
    --arch mclip_tiny --text-encoder "$ENCODER" --finetune-from-model "$1" --pooling mean --projector-layers 1 \
    --projector-ffn-embed-dim 1024 --projector-attention-heads 4 --dropout 0.1 --criterion trikd --positives image \
    --text-text-weight 1 --text-text-scale 8 --text-state-cache "$OUT/states" --text-state-dtype float16 \
    --lr 2e-4 --batch-size 512
}

teacher_learning() { # teacher_learning DIRECTORY: M-CLIP, for about as long as the other stages together
  train_for 1200 100 "$1" "$TEXT/bin/pairs:$TEXT/bin/parallel" --task trikd --langs "$LANGS" "${FEATURES[@]}" \
    --arch teacher_learning_tiny --text-tokenizer "$TEXT/tokenizer" "${SIZES[@]}" --dropout 0 \
    --criterion teacher_learning --lr 2e-3 --batch-size 512
}

# m_clip DIRECTORY: M-CLIP with the sizes of teacher_space, for as many updates. Captions of photos have no teacher text.
MIXED_TEXTS=$TEXT/bin/pairs:$TEXT/bin/parallel:$TEXT/bin/parallel:$TEXT/bin/czech
m_clip() {
  train_for 2400 200 "$1" "$MIXED_TEXTS" --task trikd --langs "$LANGS" "${FEATURES[@]}" \
    --arch teacher_learning_tiny --text-tokenizer "$TEXT/tokenizer" "${SMALL[@]}" --dropout 0 \
    --criterion teacher_learning --lr 1.5e-3 --batch-size 128
}

# Where the photos of a gallery and of the classes are; ccrk reads pictures instead.
GALLERY=(--features "$TEXT/features/image") PHOTOS=(--features "$TEXT/features/image")
evaluate() { # evaluate CHECKPOINT SPLIT FOLDER: the captions of every language
  local captions=() lang
  for lang in en de fr cs; do captions+=("$lang=$TEXT/gallery/$2.$lang"); done
  run mclip-evaluate --model "$1" "${GALLERY[@]}" --ids "$TEXT/gallery/$2.ids" --captions "${captions[@]}" --output "$3/$2"
}

classify() { # classify CHECKPOINT SPLIT FOLDER: the photos of some classes, by their names in every language
  run mclip-evaluate "$TEXT/classes/$2"/{who,where} --model "$1" "${PHOTOS[@]}" --output "$3/classes-$2"
}

compare_texts() { # compare_texts MODEL FOLDER: translations, and captions of one photo or of two
  run mclip-evaluate "$TEXT/bitext" "$TEXT/similarity:valid" --model "$1" --output "$2/texts"
}

measure() { # measure CHECKPOINT FOLDER: all of this
  local gallery split
  for gallery in "$TEXT"/gallery/*.ids; do
    split=$(basename "$gallery" .ids)
    step "evaluate-$split" "$2/$split/report.json" evaluate "$1" "$split" "$2"
    step "classify-$split" "$2/classes-$split/comparison.json" classify "$1" "$split" "$2"
  done
  step texts "$2/texts/comparison.json" compare_texts "$1" "$2"
}

translate() { # translate CHECKPOINT DIRECTORY: the validation captions from English and into it, with beam search
  local lang pair hypotheses=() references=()
  mkdir -p "$2"
  for lang in de fr cs; do
    for pair in "en-$lang" "$lang-en"; do
      run fairseq-generate "$TEXT/bin/mte" --user-dir "$PLUGIN" --task mte -s "${pair%-*}" -t "${pair#*-}" --cpu \
        --path "$1" --gen-subset valid --beam 5 --remove-bpe sentencepiece --batch-size 64 > "$2/$pair.txt"
      hypotheses+=("$pair=$2/$pair.txt")
      references+=("$pair=$TEXT/text/parallel/valid.${pair#*-}")
    done
  done
  run mclip-evaluate --hypotheses "${hypotheses[@]}" --references "${references[@]}" --output "$2"
}

extract() { # extract CHECKPOINT DIRECTORY: the encoder as an XLM-R archive
  run mclip-extract-mte "$1" --tokenizer "$TEXT/tokenizer" --output "$2"
}

# ---------------------------------------------------------------- the variants
# shellcheck source-path=SCRIPTDIR source=systems.sh
source "$ROOT/examples/multi30k8k/systems.sh"
mkdir -p "$RUN"
step data "$TEXT/prepared" prepare_data

strengthen() { # the encoder of this variant, in $RUN/encoder
  local start=
  if [[ $VARIANT != distil ]]; then
    local options=() count=120
    # Without the stage in between, MTE gets its time.
    [[ $VARIANT == published ]] && count=400
    [[ $VARIANT == no-contrastive ]] && options=(--contrastive-weight 0)
    [[ $VARIANT == no-translation ]] && options=(--translation-weight 0)
    step mte "$RUN/mte/finished" mte "$count" "$RUN/mte" "${options[@]}"
    step extract "$RUN/mte-encoder" extract "$RUN/mte/checkpoint_last.pt" "$RUN/mte-encoder"
    start=$RUN/mte-encoder
  fi
  if [[ $VARIANT == published ]]; then
    ENCODER=$start
    return
  fi
  step guide "$RUN/guide/finished" guide "$start" "$RUN/guide"
  step extract "$RUN/encoder" extract "$RUN/guide/checkpoint_last.pt" "$RUN/encoder"
  ENCODER=$RUN/encoder
}

two_stages() { # the two stages of MTE as published: the decoder alone, then encoder and decoder with contrast
  local name common=(--text-encoder "$ENCODER" --dropout 0.1 --batch-size 128)
  step mte1 "$RUN/mte1/finished" mte 1200 "$RUN/mte1" "${common[@]}" --freeze-text all --contrastive-weight 0
  common+=(--freeze-text embeddings --finetune-from-model "$RUN/mte1/checkpoint_last.pt" --lr 5e-4)
  step mte2 "$RUN/mte2/finished" mte 300 "$RUN/mte2" "${common[@]}"
  step longer "$RUN/longer/finished" mte 300 "$RUN/longer" "${common[@]}" --contrastive-weight 0
  for name in mte1 mte2 longer; do
    step "translate-$name" "$RUN/translations/$name/report.json" \
      translate "$RUN/$name/checkpoint_last.pt" "$RUN/translations/$name"
    step "extract-$name" "$RUN/$name-encoder" extract "$RUN/$name/checkpoint_last.pt" "$RUN/$name-encoder"
  done
  run mclip-evaluate "$TEXT/bitext" --model "$RUN"/{mte1,mte2,longer}-encoder --name mte1 mte2 longer \
    --output "$RUN/evaluation/bitext"
}

case $VARIANT in
  stages)
    ENCODER=$OUT/mclip-$SEED/encoder
    [[ -d $ENCODER ]] || fail "$ENCODER: not found; run VARIANT=mclip SEED=$SEED first"
    two_stages
    exit
    ;;
  mclip | published | distil | no-contrastive | no-translation)
    strengthen
    step trikd "$RUN/trikd/finished" trikd "$ENCODER" "$RUN/trikd"
    ;;
  no-text-text | no-image-text)
    ENCODER=$OUT/mclip-$SEED/encoder
    [[ -d $ENCODER ]] || fail "$ENCODER: not found; run VARIANT=mclip SEED=$SEED first"
    options=(--text-text-weight 0)
    [[ $VARIANT == no-image-text ]] && options=(--image-text-weight 0)
    step trikd "$RUN/trikd/finished" trikd "$ENCODER" "$RUN/trikd" "${options[@]}"
    ;;
  finetune-*)
    ENCODER=$OUT/mclip-$SEED/encoder
    start=$OUT/mclip-$SEED/trikd/checkpoint_last.pt
    [[ -e $start ]] || fail "$start: not found; run VARIANT=mclip SEED=$SEED first"
    languages=${VARIANT#finetune-}
    [[ $languages == all ]] && languages=$LANGS
    step finetune "$RUN/trikd/finished" finetune "$start" "$languages" "$RUN/trikd"
    ;;
  teacher-space)
    step trikd "$RUN/trikd/finished" teacher_space "$RUN/trikd"
    ;;
  trikd-after)
    start=$OUT/teacher-space-$SEED/trikd/checkpoint_last.pt
    [[ -e $start ]] || fail "$start: not found; run VARIANT=teacher-space SEED=$SEED first"
    step extract "$RUN/encoder" extract "$start" "$RUN/encoder"
    step trikd "$RUN/trikd/finished" trikd "$RUN/encoder" "$RUN/trikd" "${OPTIONS[@]}"
    ;;
  m-clip)
    step trikd "$RUN/trikd/finished" m_clip "$RUN/trikd"
    ;;
  teacher-learning)
    step trikd "$RUN/trikd/finished" teacher_learning "$RUN/trikd"
    ;;
  altclip)
    step teach "$RUN/teach/finished" teach "$RUN/teach"
    measure "$RUN/teach/checkpoint_last.pt" "$RUN/evaluation-teach"
    step align "$RUN/trikd/finished" align "$RUN/teach/checkpoint_last.pt" "$RUN/trikd"
    ;;
  mla)
    step small-clip "$CLIP/ready" small_clip
    GALLERY=(--features "$CLIP/features/image") PHOTOS=(--features "$CLIP/features/image")
    step nlt "$RUN/nlt/finished" nlt "$RUN/nlt"
    measure "$RUN/nlt/checkpoint_last.pt" "$RUN/evaluation-nlt"
    step le "$RUN/trikd/finished" le "$RUN/nlt/checkpoint_last.pt" "$RUN/trikd"
    ;;
  ccrk)
    step pictures "$TEXT/bin/ccrk/ready" pictures
    GALLERY=(--images "$PICTURES" --rerank 16) PHOTOS=(--images-root "$PICTURES")
    step ccrk "$RUN/trikd/finished" ccrk "$RUN/trikd"
    ;;
  contrastive-tension)
    start=$OUT/m-clip-$SEED/trikd/checkpoint_last.pt
    [[ -e $start ]] || fail "$start: not found; run VARIANT=m-clip SEED=$SEED first"
    step extract "$RUN/encoder" extract "$start" "$RUN/encoder"
    compare_texts "$RUN/encoder" "$RUN/evaluation-start"
    step tension "$RUN/tension/finished" tension "$RUN/encoder" "$RUN/tension"
    compare_texts "$RUN/tension/checkpoint_last.pt" "$RUN/evaluation"
    exit
    ;;
  *)
    fail "VARIANT=$VARIANT is not a variant; --help lists them"
    ;;
esac
measure "$RUN/trikd/checkpoint_last.pt" "$RUN/evaluation"
