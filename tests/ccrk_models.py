"""CCRK's fixtures as models and batches, and a tiny corpus of images with captions in several languages."""

from __future__ import annotations

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mclip_fairseq.criterions.ccrk import CCRKCriterion
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.formats.ccrk import build_released
from mclip_fairseq.losses import MatchingPairs
from mclip_fairseq.models.ccrk import CCRKModel
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.pieces import SENTENCEPIECE, write_dictionary
from tests.tiny_data import LANGS, write

HEAD_DIM = 8  # of the tiny fixtures


def fixture_folder(shared_dir: Path) -> Path:
    """The folder of CCRK's fixtures; skips the test where it is missing."""
    folder = shared_dir / "fixtures" / "ccrk"
    if not folder.is_dir():
        pytest.skip(f"{folder} is missing")
    return folder


def archive(shared_dir: Path, folder: Path) -> Path:
    """Dictionary and SentencePiece model of the fixtures' XLM-R, in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(
        fixture_folder(shared_dir) / "ccrk_init" / "xlm-roberta-large" / SENTENCEPIECE, folder / SENTENCEPIECE
    )
    write_dictionary(folder)
    return folder


def checkpoint(shared_dir: Path, name: str) -> dict[str, Any]:
    """A checkpoint of the fixtures."""
    return load_checkpoint(fixture_folder(shared_dir) / name)


def released_model(weights: dict[str, Tensor], text_files: Path) -> CCRKModel:
    """The model of a released state dict, in evaluation mode."""
    return build_released(weights, load_dictionary(text_files), HEAD_DIM, "fixture").eval()


class PinnedCriterion(CCRKCriterion):
    """The criterion with recorded picks instead of draws.

    Args:
        picks: `text` rows of the positives, `image` and `negative` of the hard pairs.
        options: that differ from the defaults.
    """

    def __init__(self, picks: tuple[Any, Any, Any] | None = None, **options: Any) -> None:
        defaults: dict[str, Any] = {
            "contrast_weight": 1.0,
            "matching_weight": 1.0,
            "masked_words_weight": 1.0,
            "contrast_divisor": "k",
            "positive_draw": "probability",
        }
        super().__init__(Namespace(), **(defaults | options))
        self.picks = picks

    def draw_pairs(self, *arguments: Any) -> MatchingPairs:
        """The recorded pairs."""
        assert self.picks is not None
        text, image, negative = (torch.as_tensor(picks) for picks in self.picks)
        rows = torch.arange(len(text))
        labels = torch.zeros(3 * len(text), dtype=torch.long)
        labels[: len(text)] = 1
        return MatchingPairs(torch.cat([rows, image, rows]), torch.cat([text, text, negative]), labels)


def parallel_batch(inputs: dict[str, Tensor]) -> dict[str, Any]:
    """A recorded pre-training batch as our task would give it."""
    images = len(inputs["image"])
    return {
        "net_input": {
            "pixel_values": inputs["image"].float(),
            "text_tokens": inputs["text_ids"],
            "masked_tokens": inputs["text_ids_masked"],
            "masked_positions": inputs["masked_pos"],
            "masked_labels": inputs["masked_ids"],
        },
        "captions": len(inputs["text_ids"]) // images,
        "group": torch.arange(images),
        "nsentences": images,
        "ntokens": int(inputs["text_atts"].sum()),
    }


def parallel_corpus(photos: Path, tiny_corpus: Path, folder: Path) -> Path:
    """The tiny corpus with the same pictures in the same order in every language; images lie in `photos/images`."""
    shutil.copytree(tiny_corpus / "captions", folder)
    for split, start, stop in (("train", 0, 104), ("valid", 104, 120)):
        for lang in LANGS:
            write(folder / f"{split}.{lang}.ids", [f"img{number % 40}.png" for number in range(start, stop)])
    return folder


def training_options(corpus: Path, photos: Path, tokenizer: Path, folder: Path, *more: object) -> list[str]:
    """fairseq-train's command line of a tiny pre-training."""
    values = [
        *(corpus, "--task", "ccrk", "--langs", "en,de,fr", "--arch", "ccrk_tiny", "--criterion", "ccrk"),
        *("--image-root", photos / "images", "--text-tokenizer", tokenizer, "--optimizer", "fused_adamw"),
        *("--fresh-lr-multiplier", "2", "--lr", "0.001", "--batch-size", "13", "--num-workers", "0"),
        *("--no-progress-bar", "--log-format", "json", "--no-epoch-checkpoints", "--save-dir", folder, *more),
    ]
    return [str(value) for value in values]
