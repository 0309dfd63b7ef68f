#!/usr/bin/env python3
"""How often `mclip-search calibrate` is wrong on real photos: with a teacher's features, or a model trained on them.

The index holds the validation images and, with --distractors, images of the training split. The bank is made of
captions of training images that the index does not hold; the queries are the captions of the validation images. Both
are English, with --model also German, French and Czech. Printed per fit and language: false alarms (queries without
their image that fit well), misses (queries with it that do not), and recall with and without the correction of hubs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._search import build_made_up
from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.search.bank import Labelled, encode_labelled, search_bank
from mclip_fairseq.search.calibration import Calibration, format_measures, measure
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.storage.features import write_features
from mclip_fairseq.storage.files import read_lines

FITS = (0.1, 0.2, 0.5, 0.8, 0.9)
LANGUAGES = ("en", "de", "fr", "cs")
SPLITS = ("train", "valid")
Array = np.ndarray[Any, Any]


def make_index(folder: Path, ids: Sequence[str], vectors: Array) -> SearchIndex:
    """An exact index of these images."""
    write_features(folder / "features", ids, vectors, model="made-up", normalized=True)
    build_made_up(folder / "features", folder / "index", "exact", vectors.shape[1])
    return SearchIndex.open(folder / "index")


def features_of(data: Path, name: str) -> Array:
    """(n, dim) float32 features of the teacher."""
    features: Array = np.load(data / "features" / f"{name}.npy", allow_pickle=False).astype(np.float32)
    return features


def vectors_of(data: Path, checkpoint: str) -> tuple[dict[str, Array], dict[tuple[str, str], Array]]:
    """Split -> vectors of its images, and (split, language) -> vectors of its captions.

    Args:
        data: see `report`.
        checkpoint: model that reads the teacher's image features; empty for the teacher itself.
    """
    images = {split: features_of(data, f"{split}.image") for split in SPLITS}
    if not checkpoint:
        return images, {(split, "en"): features_of(data, f"{split}.text_en") for split in SPLITS}
    model = MultilingualCLIP.from_pretrained(checkpoint)
    encoded = {split: model.encode_image_features(torch.from_numpy(images[split])).numpy() for split in SPLITS}
    captions = {
        (split, language): [Labelled(language, line) for line in read_lines(data / "captions" / f"{split}.{language}")]
        for split in SPLITS
        for language in LANGUAGES
    }
    return encoded, {place: encode_labelled(model, lines) for place, lines in captions.items()}


def report(data: Path, size: int, distractors: int, seed: int, checkpoint: str = "") -> str:
    """The table of one gallery.

    Args:
        data: folder with `images/{train,valid}.ids`, `features/{train,valid}.{image,text_en}.npy` and, for a model,
            `captions/{train,valid}.LANGUAGE`.
        size: queries of the bank, per language.
        distractors: training images in the index.
        seed: of the choice of both.
        checkpoint: see `vectors_of`.
    """
    ids = {split: read_lines(data / "images" / f"{split}.ids") for split in SPLITS}
    images, texts = vectors_of(data, checkpoint)
    languages = [language for split, language in texts if split == "valid"]
    order = np.random.default_rng(seed).permutation(len(ids["train"]))
    extra, banked = order[:distractors], order[distractors : distractors + size]
    names = [*ids["valid"], *(ids["train"][row] for row in extra)]
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), names, np.concatenate([images["valid"], images["train"][extra]]))
        vectors = np.concatenate([texts["train", language][banked] for language in languages])
        bank = search_bank(index, vectors, np.repeat(languages, len(banked)).tolist(), [""] * len(vectors))
        queries = [Labelled(language, "", name) for language in languages for name in ids["valid"]]
        asked = np.concatenate([texts["valid", language] for language in languages])
        measures = {fit: measure(index, Calibration(bank, fit), queries, asked) for fit in FITS}
    rows = {f"{code}, fit {fit}, {len(names)} images": measures[fit][code] for fit in FITS for code in languages}
    return format_measures(rows)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", metavar="DIR", help="the data of examples/multi30k8k")
    parser.add_argument("--bank", type=int, default=1000, help="queries of the bank, per language (default 1000)")
    parser.add_argument("--distractors", type=int, default=0, help="training images in the index (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of bank and distractors (default 0)")
    model = "checkpoint that examples/multi30k8k has trained (default: the English teacher)"
    parser.add_argument("--model", default="", metavar="M", help=model)
    options = parser.parse_args(argv)
    if options.data is None:
        print("skipped: name the folder of the data of examples/multi30k8k")
        return 0
    print(report(options.data, options.bank, options.distractors, options.seed, options.model))
    return 0


if __name__ == "__main__":
    sys.exit(main())
