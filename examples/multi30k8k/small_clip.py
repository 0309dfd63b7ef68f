#!/usr/bin/env python3
"""Train the small English CLIP into which MLA brings further languages.

The data hold the teacher's features, but MLA works inside a text tower. So a CLIP with a text tower of one layer learns
the teacher's space from English captions: by its distance to the teacher's text features, and by the contrast with the
photos. Its image side is the teacher's features; the image tower that the format wants is never run.

Reads the output of prepare.py, and writes

- `clip/`: the model, as `transformers` saves it;
- `vocab.txt`: the word pieces of the other languages;
- `words/`: a model with the random word vectors that they start from;
- `features/image`: the photos' features as those of this CLIP.
"""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import trange

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.losses import symmetric_info_nce
from mclip_fairseq.storage.features import FeatureStore, write_features
from mclip_fairseq.storage.files import read_lines

OTHERS = ("de", "fr", "cs")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, START, END = 0, 2, 3
PIECES = 14_000
DIM = 256
LONGEST = 64  # tokens
SCALE = 27.6  # the teacher's factor of the cosine
DISTANCE = 10.0  # weight of the squared distance beside the contrast
BATCH, LR, WARMUP = 128, 1.5e-3, 0.08


def write_vocabulary(path: Path, texts: Sequence[str]) -> None:
    """Write a WordPiece vocabulary, as mBERT has it: every letter, and the commonest words."""
    from tokenizers.pre_tokenizers import BertPreTokenizer

    split = BertPreTokenizer().pre_tokenize_str
    words = Counter(word for text in texts for word, _ in split(text))
    letters = sorted({letter for word in words for letter in word})
    common = [word for word, _ in sorted(words.items(), key=lambda entry: (-entry[1], entry[0]))]
    pieces = dict.fromkeys([*SPECIAL, *letters, *(f"##{letter}" for letter in letters), *common])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{piece}\n" for piece in list(pieces)[:PIECES]), encoding="utf-8")


def build_clip(entries: int) -> Any:
    """CLIP with random weights, and the smallest image tower there is."""
    from transformers import CLIPConfig, CLIPModel

    text = {
        **{"vocab_size": entries, "hidden_size": DIM, "intermediate_size": 2 * DIM, "num_hidden_layers": 1},
        **{"num_attention_heads": 4, "max_position_embeddings": LONGEST, "projection_dim": DIM},
        **{"pad_token_id": PAD, "bos_token_id": START, "eos_token_id": END},
    }
    image = {
        **{"hidden_size": 1, "intermediate_size": 1, "num_hidden_layers": 1, "num_attention_heads": 1},
        **{"image_size": 16, "patch_size": 16, "projection_dim": DIM},
    }
    scale = math.log(SCALE)
    return CLIPModel(
        CLIPConfig(text_config=text, vision_config=image, projection_dim=DIM, logit_scale_init_value=scale)
    )


def read_captions(text: Path, folders: Sequence[str], column: int) -> tuple[list[str], list[str]]:
    """English training captions and what one column of their .ids files names."""
    captions, names = [], []
    for folder in folders:
        captions += read_lines(text / folder / "train.en")
        names += [line.split("\t")[column] for line in read_lines(text / folder / "train.en.ids")]
    return captions, names


def batches(count: int) -> Iterator[Tensor]:
    """Rows of `BATCH` captions at a time, in a new random order each epoch, without end."""
    while True:
        yield from torch.randperm(count).split(BATCH)


def train(clip: Any, tokenizer: Any, data: Path, updates: int) -> None:
    """Train the text tower in place, on captions with the teacher's text features and captions of photos in turn."""
    parts = []
    for folders, column, features in ((("parallel",), 1, "text"), (("pairs", "pairs5"), 0, "image")):
        captions, names = read_captions(data / "text", folders, column)
        ids = tokenizer(captions, truncation=True, max_length=LONGEST)["input_ids"]
        store = FeatureStore.open(data / "features" / features)
        rows = torch.from_numpy(store.rows(names))
        targets = F.normalize(torch.from_numpy(store.take(rows)).float(), dim=1)
        parts.append((ids, rows, targets, batches(len(ids))))
    optimizer = torch.optim.AdamW(clip.text_model.parameters(), lr=LR, fused=True)
    optimizer.add_param_group({"params": clip.text_projection.parameters()})
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, LR, total_steps=updates, pct_start=WARMUP, anneal_strategy="linear", cycle_momentum=False
    )
    clip.train()
    for update in trange(updates, desc="English CLIP", mininterval=5):
        ids, rows, targets, order = parts[update % 2]
        chosen = next(order)
        longest = tokenizer.pad({"input_ids": [ids[row] for row in chosen]}, return_tensors="pt")
        text = F.normalize(clip.get_text_features(**longest).pooler_output, dim=1)
        if update % 2:
            positives = rows[chosen, None] == rows[chosen]
            loss = symmetric_info_nce(text, targets[chosen], text.new_tensor(SCALE), positives)
        else:
            loss = DISTANCE * (text - targets[chosen]).square().sum(1).mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(clip.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    clip.eval()


def make(data: Path, output: Path, updates: int, seed: int) -> str:
    """Train and write everything; returns a summary for the user."""
    shield_torchaudio()
    from transformers import BertConfig, BertModel, BertTokenizer, CLIPImageProcessorPil

    from mclip_fairseq.models.teacher import DualEncoderTeacher

    torch.manual_seed(seed)
    text = data / "text" / "parallel"
    write_vocabulary(output / "vocab.txt", [line for lang in OTHERS for line in read_lines(text / f"train.{lang}")])
    write_vocabulary(output / "english.txt", read_lines(text / "train.en"))
    tokenizer = BertTokenizer(vocab=str(output / "english.txt"), do_lower_case=False, model_max_length=LONGEST)
    clip = build_clip(len(tokenizer))
    train(clip, tokenizer, data, updates)
    edge = {"height": 16, "width": 16}
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=edge)
    for part in (clip, tokenizer, processor):
        part.save_pretrained(output / "clip")
    words = BertConfig(
        vocab_size=PIECES, hidden_size=DIM, intermediate_size=DIM, num_hidden_layers=1, num_attention_heads=4
    )
    BertModel(words).save_pretrained(output / "words")
    photos = FeatureStore.open(data / "features" / "image")
    write_features(
        output / "features" / "image",
        photos.ids,
        photos.take(range(len(photos))),
        model=DualEncoderTeacher.from_pretrained(output / "clip").identity,
        normalized=True,
        preprocessing="the teacher's features of the photos",
    )
    trained = sum(weight.numel() for weight in clip.text_model.parameters()) + clip.text_projection.weight.numel()
    return f"{output}: {trained:,} parameters of the text tower, {updates} updates"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="output of prepare.py")
    parser.add_argument("output", type=Path, help="directory to write")
    parser.add_argument("--updates", type=int, default=2400, help="training steps (default: 2400)")
    parser.add_argument("--seed", type=int, default=1, help="seed of weights and order (default: 1)")
    args = parser.parse_args(argv)
    return run_main("small_clip.py", lambda: print(make(args.data, args.output, args.updates, args.seed)))


if __name__ == "__main__":
    sys.exit(main())
