#!/usr/bin/env python3
"""Teach the quickstart's teacher more English words: its text tower learns from drawings, its image tower stays.

Locked-image tuning (LiT, Zhai et al. 2022). Each step compares some texts with all drawings; a text has to find one of
those that it describes, whichever (MIL-NCE, Miech et al. 2020), because `rain` describes umbrellas and a rainbow, too.
A drawing whose name has the words of the text counts more: `money` is rather a money bag than a treasure chest.
With --keep, texts that the teacher has learned keep their features. Trains on the files CORPUS/captions/NAME.en,
their .ids files and the drawings they name, and writes a teacher like that of train_teacher.py.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm
from train_teacher import load_pixels, load_split

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.compat import shield_torchaudio

SCALE = 50.0  # of the cosines
KEEP = 10.0  # weight of the squared distance to the features that texts had
NAMED = 4.0  # weight of a drawing whose name has the words of a text, beside that of others that it describes
CHUNK = 512  # drawings encoded at a time


@dataclass(frozen=True)
class Described:
    """Texts and the drawings they describe.

    Attributes:
        texts: each once.
        images: ids of the drawings, each once.
        weights: (texts, images) float32, how well a text describes a drawing: 0, or up to 1.
    """

    texts: list[str]
    images: list[str]
    weights: Tensor


def describe(corpus: Path, names: Sequence[str]) -> Described:
    """Read the captions of some files; the first caption of a drawing is its name.

    Raises:
        UserError: a file is missing or not as build_corpus.py writes it.
    """
    splits = [load_split(corpus, name) for name in names]
    pairs = [pair for split in splits for pair in zip(split.names, split.images, strict=True)]
    texts = sorted({text for text, _ in pairs})
    images = sorted({image for _, image in pairs})
    row = {text: number for number, text in enumerate(texts)}
    column = {image: number for number, image in enumerate(images)}
    words: dict[str, set[str]] = {}  # of a drawing's name
    weights = torch.zeros(len(texts), len(images))
    for text, image in pairs:
        named = set(text.split()) <= words.setdefault(image, set(text.split()))
        weights[row[text], column[image]] = NAMED if named else 1.0
    return Described(texts, images, weights / weights.amax(1, keepdim=True))


@torch.no_grad()
def encode_drawings(model: Any, processor: Any, corpus: Path, images: Sequence[str]) -> Tensor:
    """(n, DIM) normalised."""
    pixels = load_pixels(corpus, images, processor).contiguous(memory_format=torch.channels_last)
    return F.normalize(torch.cat([model.get_image_features(part).pooler_output for part in pixels.split(CHUNK)]), dim=1)


def encode_texts(model: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """(n, DIM) normalised."""
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    return F.normalize(model.get_text_features(tokens["input_ids"], tokens["attention_mask"]).pooler_output, dim=1)


def find_any(logits: Tensor, weights: Tensor) -> Tensor:
    """(rows,): -log of the softmax over columns, summed with the weights of the row."""
    return -(logits.log_softmax(1) + weights.log()).logsumexp(1)


def draw(mask: Tensor, count: int) -> Tensor:
    """Up to `count` random rows where a mask is True."""
    rows = mask.nonzero()[:, 0]
    return rows[torch.randperm(len(rows))[:count]]


def tune(
    model: Any, tokenizer: Any, images: Tensor, data: Described, known: Tensor, options: argparse.Namespace
) -> None:
    """Train the text tower and its projection in place.

    Args:
        model: the teacher.
        tokenizer: its own.
        images: (images, DIM) normalised.
        data: texts and what they describe.
        known: (texts,) bool, those that keep their features.
        options: steps, batch_size and lr.
    """
    trained = [*model.text_model.parameters(), *model.text_projection.parameters()]
    optimizer = torch.optim.AdamW(trained, lr=options.lr, betas=(0.9, 0.98), weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, options.lr, total_steps=options.steps, pct_start=0.05, cycle_momentum=False
    )
    with torch.no_grad():
        before = encode_texts(model, tokenizer, data.texts)
    model.train()
    with tqdm(range(options.steps), desc="text tower", unit="step", mininterval=5) as progress:
        for _ in progress:
            old = draw(known, options.batch_size // 2)
            new = draw(~known, options.batch_size - len(old))
            text = encode_texts(model, tokenizer, [data.texts[row] for row in [*old, *new]])
            moved = (text[: len(old)] - before[old]).square().sum(1)
            missed = find_any(SCALE * text[len(old) :] @ images.T, data.weights[new])
            loss = (KEEP * moved.sum() + missed.sum()) / len(text)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def tune_teacher(options: argparse.Namespace) -> None:
    """Load the teacher, tune its text tower, and save it."""
    shield_torchaudio()
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    torch.manual_seed(options.seed)
    model, tokenizer, processor = (
        kind.from_pretrained(options.teacher) for kind in (AutoModel, AutoTokenizer, AutoImageProcessor)
    )
    data = describe(options.corpus, options.captions)
    kept = set(load_split(options.corpus, options.keep).names) if options.keep else set()
    known = torch.tensor([text in kept for text in data.texts])
    images = encode_drawings(model, processor, options.corpus, data.images)
    tune(model, tokenizer, images, data, known, options)
    for part in (model, tokenizer, processor):
        part.save_pretrained(options.output)
    print(f"{options.output}: {len(data.texts)} texts of {len(data.images)} drawings")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--teacher", type=Path, required=True, help="output of train_teacher.py")
    parser.add_argument("--corpus", type=Path, required=True, help="output of build_corpus.py")
    parser.add_argument("--captions", nargs="+", required=True, metavar="NAME", help="files CORPUS/captions/NAME.en")
    parser.add_argument("--output", type=Path, required=True, help="directory for the tuned teacher")
    parser.add_argument("--keep", metavar="NAME", help="the texts of CORPUS/captions/NAME.en keep their features")
    parser.add_argument("--steps", type=int, default=700, help="updates (default: 700)")
    parser.add_argument(
        "--batch-size", type=int, default=256, help="texts per step, half of them of --keep (default: 256)"
    )
    parser.add_argument("--lr", type=float, default=3e-3, help="peak learning rate (default: 0.003)")
    parser.add_argument("--seed", type=int, default=1, help="seed (default: 1)")
    options = parser.parse_args(argv)
    return run_main("tune_teacher.py", lambda: tune_teacher(options))


if __name__ == "__main__":
    sys.exit(main())
