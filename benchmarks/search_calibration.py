#!/usr/bin/env python3
"""How often `mclip-search calibrate` is wrong: real photos and English captions, and a teacher's features of them.

The index holds the validation images and, with --distractors, images of the training split. The bank is made of
captions of training images that the index does not hold; the queries are the captions of the validation images. Printed
per fit: false alarms (queries without their image that fit well), misses (queries with it that do not), and recall with
and without the correction of hubs.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks._search import build_made_up
from mclip_fairseq.search.bank import Labelled, search_bank
from mclip_fairseq.search.calibration import Calibration, format_measures, measure
from mclip_fairseq.search.index import SearchIndex
from mclip_fairseq.storage.features import write_features
from mclip_fairseq.storage.files import read_lines

FITS = (0.1, 0.2, 0.5, 0.8, 0.9)
Array = np.ndarray[Any, Any]


def make_index(folder: Path, ids: Sequence[str], vectors: Array) -> SearchIndex:
    """An exact index of these images."""
    write_features(folder / "features", ids, vectors, model="made-up", normalized=True)
    build_made_up(folder / "features", folder / "index", "exact", vectors.shape[1])
    return SearchIndex.open(folder / "index")


def report(data: Path, size: int, distractors: int, seed: int) -> str:
    """The table of one gallery.

    Args:
        data: folder with `images/{train,valid}.ids` and `features/{train,valid}.{image,text_en}.npy`.
        size: queries of the bank.
        distractors: training images in the index.
        seed: of the choice of both.
    """
    ids = {split: read_lines(data / "images" / f"{split}.ids") for split in ("train", "valid")}
    features = {
        (split, side): np.load(data / "features" / f"{split}.{side}.npy", allow_pickle=False).astype(np.float32)
        for split in ("train", "valid")
        for side in ("image", "text_en")
    }
    order = np.random.default_rng(seed).permutation(len(ids["train"]))
    extra, banked = order[:distractors], order[distractors : distractors + size]
    names = [*ids["valid"], *(ids["train"][row] for row in extra)]
    images = np.concatenate([features["valid", "image"], features["train", "image"][extra]])
    with tempfile.TemporaryDirectory() as folder:
        index = make_index(Path(folder), names, images)
        bank = search_bank(index, features["train", "text_en"][banked], ["en"] * len(banked), [""] * len(banked))
        queries = [Labelled("en", "", name) for name in ids["valid"]]
        table = {
            f"fit {fit}, {len(names)} images": measure(
                index, Calibration(bank, fit), queries, features["valid", "text_en"]
            )["en"]
            for fit in FITS
        }
    return format_measures(table)


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="?", metavar="DIR", help="the data of examples/multi30k8k")
    parser.add_argument("--bank", type=int, default=1000, help="queries of the bank (default 1000)")
    parser.add_argument("--distractors", type=int, default=0, help="training images in the index (default 0)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of bank and distractors (default 0)")
    options = parser.parse_args(argv)
    if options.data is None:
        print("skipped: name the folder of the data of examples/multi30k8k")
        return 0
    print(report(options.data, options.bank, options.distractors, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
