# shellcheck shell=bash disable=SC2154 # run.sh, which sources this file, sets the variables
# AltCLIP, MLA, CCRK and Contrastive Tension, with the data, pieces and width of teacher-space. The README says what takes
# the place of the pretrained parts that they start from.
CLIP=$OUT/small-clip

# AltCLIP, stage 1: the teacher's text state, at the first token, in every language.
teach() {
  train_for 2000 160 "$1" "$MIXED_TEXTS" --task distillation --langs "$LANGS" \
    --text-features "$TEXT/features/pooled" --image-features "$TEXT/features/image" "${ALTCLIP[@]}" \
    --criterion distillation --lr 1.5e-3 --batch-size 128
}
# Stage 2, align TEACH DIRECTORY: contrast of English captions and photos; the projection and the scale are trained, too.
align() {
  train_for 400 40 "$2" "$TEXT/bin/pairs:$TEXT/bin/pairs5" --task image_text --langs en \
    --text-features "$TEXT/features/pooled" --image-features "$TEXT/features/image" "${ALTCLIP[@]}" \
    --train-projections --train-scale --finetune-from-model "$1" --criterion image_text --positives image \
    --lr 2e-4 --batch-size 128
}
ALTCLIP=(--arch altclip_tiny --text-tokenizer "$TEXT/tokenizer" "${SMALL[@]}" --dropout 0)

# MLA over a small English CLIP, the same for all seeds.
small_clip() {
  local file rows
  run "$PYTHON" "$ROOT/examples/multi30k8k/small_clip.py" "$TEXT" "$CLIP" --updates "$(updates 2400)"
  paste <(cut -f 2 "$TEXT/text/parallel/train.en.ids") "$TEXT/text/parallel/train.en" > "$CLIP/english.tsv"
  paste <(cut -f 2 "$TEXT/text/pairs/train.en.ids") "$TEXT/text/pairs/train.en" >> "$CLIP/english.tsv"
  run mclip-features --model "$CLIP/clip" --captions "$CLIP/english.tsv" --output "$CLIP/features/text"
  for rows in parallel photos; do
    run "$PYTHON" "$PREPROCESS/binarise.py" --tokenizer "$CLIP/vocab.txt" --pieces "$TEXT/text/$rows" --splits train \
      --captions de fr cs --output "$CLIP/bin/$rows"
    for file in "$TEXT/text/$rows"/train.{de,fr,cs}.ids; do cp "$file" "$CLIP/bin/$rows/"; done
  done
  touch "$CLIP/ready"
}
MLA=(--arch mla_base --teacher "$CLIP/clip" --acquirers "de,fr,cs" --acquirer-dim 128)
MLA+=(--text-tokenizer "$CLIP/vocab.txt" --langs "de,fr,cs" --max-caption-tokens 64)
nlt() { # native language transfer: the CLIP's features of the English captions
  train_for 2000 160 "$1" "$CLIP/bin/parallel" --task distillation --text-features "$CLIP/features/text" "${MLA[@]}" \
    --embedding "$CLIP/words" --criterion distillation --lr 1.5e-3 --batch-size 128
}
le() { # language exposure, le NLT DIRECTORY: captions of the training photos in every language
  train_for 400 40 "$2" "$CLIP/bin/photos" --task image_text --image-features "$CLIP/features/image" "${MLA[@]}" \
    --base "$1" --criterion image_text --positives image --lr 2e-4 --batch-size 128
}

# CCRK: photos with their captions in all four languages; pictures of the teacher's features stand in for the photos.
PICTURES=$OUT/pictures
pictures() {
  local lang
  run "$PYTHON" "$ROOT/examples/multi30k8k/feature_pictures.py" "$TEXT/features/image" "$PICTURES"
  binarise "$TEXT/tokenizer" --pieces "$TEXT/pieces/photos" --captions en de fr cs --splits train --output "$TEXT/bin/ccrk"
  for lang in en de fr cs; do
    cut -f 1 "$TEXT/text/photos/train.$lang.ids" | sed 's/$/.png/' > "$TEXT/bin/ccrk/train.$lang.ids"
  done
  touch "$TEXT/bin/ccrk/ready"
}
ccrk() {
  train_for 1200 120 "$1" "$TEXT/bin/ccrk" --task ccrk --langs "$LANGS" --image-root "$PICTURES" --crop-area 0 \
    --captions-per-image 2 --arch ccrk_base --text-tokenizer "$TEXT/tokenizer" "${SMALL[@]}" --fusion-layers 1 \
    --image-size 16 --image-patch-size 4 --image-window 4 --image-embed-dim 256 --image-depths 2 --image-heads 4 \
    --drop-path 0 --dropout 0 --attention-dropout 0 --temperature 0.5 --criterion ccrk --lr 1e-3 --batch-size 64
}

# Contrastive Tension, tension ENCODER DIRECTORY: captions without their translations, at the published rates.
tension() {
  train "$2" "$TEXT/bin/parallel" --user-dir "$PLUGIN" --seed "$SEED" --cpu --task contrastive_tension --langs "$LANGS" \
    --arch contrastive_tension_base --text-encoder "$1" --criterion contrastive_tension --optimizer rmsprop --lr 1e-5 \
    --lr-scheduler manual --update2lr "{'1': 1e-5, '501': 8e-6, '1001': 6e-6, '1501': 4e-6, '2001': 2e-6}" \
    --batch-size 2 --required-batch-size-multiple 1 --max-update "$(updates 5000)" "${LOGGING[@]}"
}
