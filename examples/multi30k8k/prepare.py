#!/usr/bin/env python3
"""Lay out Multi30K on the Flickr8k photos for the tasks `mte` and `trikd`.

Reads the directory that the README describes and writes to the output:

- `text/parallel/{train,valid}.{en,de,fr,cs}`: aligned captions, with `.ids` for the teacher's English text features;
- `text/pairs/train.en` and `text/pairs/valid.{en,de,fr,cs}`: captions of the photos, with `.ids`;
- `text/pairs5/train.en`: the five independent English captions of each training photo, with `.ids`;
- `text/photos/train.{en,de,fr,cs}`: a caption of each training photo in each language, with `.ids`, for fine-tuning and
  the systems that are not trained zero-shot;
- `gallery/valid.{en,de,fr,cs}` and `gallery/valid.ids`: the validation captions and their photos, and those of `test`
  if the directory has that split;
- `classes/SPLIT/{who,where}`: class names in the four languages and photos of these classes; see `photo_classes.py`;
- `bitext/`: the validation captions of each language with the English ones, a benchmark for `mclip-evaluate`;
- `similarity/`: a validation caption in each language beside an English one, of the same photo or of another, likewise;
- `features/image`, `features/text`: indexed feature directories, and `features/pooled`, the latter as AltCLIP reads it.

Elsewhere, no caption in another language than English is paired with a photo that is trained on.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from photo_classes import write_classes

from mclip_fairseq.cli.main import Parser, run_main
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import first_line, read_lines, write_json

LANGS = ("en", "de", "fr", "cs")
SPLITS = ("train", "valid")
HELD_OUT = "test"  # evaluated if the user has added it to the directory
# Score of two captions of one photo, and of two photos.
ALIKE, DIFFERENT = 5, 0
TEACHER_SCALE = 27.6  # the teacher's factor of the cosine
TEACHER = "multi30k8k English dual encoder (EfficientNet-lite2 + all-MiniLM-L6-v2)"


def write_lines(path: Path, lines: Sequence[str]) -> None:
    """Write one item per line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def galleries(data: Path) -> tuple[str, ...]:
    """The splits to evaluate."""
    return ("valid", HELD_OUT) if (data / "images" / f"{HELD_OUT}.ids").is_file() else ("valid",)


def write_parallel(data: Path, output: Path) -> dict[str, int]:
    """Aligned captions; returns their number per split."""
    counts = {}
    for split in SPLITS:
        sides = {lang: read_lines(data / "mt" / f"{split}.{lang}.gz") for lang in LANGS}
        counts[split] = len(sides["en"])
        for lang, lines in sides.items():
            if len(lines) != counts[split]:
                raise UserError(f"{data}/mt/{split}.{lang}.gz: has {len(lines)} lines, but English has {counts[split]}")
            write_lines(output / "text" / "parallel" / f"{split}.{lang}", lines)
            if split == "train":
                # All captions of a tuple refer to the teacher's feature of the English one.
                write_lines(
                    output / "text" / "parallel" / f"train.{lang}.ids", [f"-\tmt{i}" for i in range(len(lines))]
                )
    return counts


def write_bitext(data: Path, output: Path) -> None:
    """Validation captions of every language with the English ones, in the layout of `preprocess/tatoeba.py`."""
    folder = output / "bitext"
    for lang in LANGS[1:]:
        for side in (lang, "en"):
            write_lines(folder / f"test.{lang}-en.{side}", read_lines(data / "mt" / f"valid.{side}.gz"))
    count = len(read_lines(data / "mt" / "valid.en.gz"))
    manifest = {"name": "Multi30K validation captions", "pairs": {f"{lang}-en": count for lang in LANGS[1:]}}
    write_json(folder / "manifest.json", manifest)


def write_similarity(data: Path, output: Path) -> None:
    """Pairs of captions that show one photo or two, in the layout of `preprocess/sts.py`.

    A photo's caption of task 1, in each language, meets two English ones of task 2, and two of the next photo.
    """
    photos = read_lines(data / "images" / "valid.ids")
    described: dict[str, list[str]] = {photo: [] for photo in photos}
    for line in read_lines(data / "captions" / "valid.en5.tsv.gz"):
        photo, caption = line.split("\t", 1)
        described[photo].append(caption)
    names = {lang: f"captions.valid.{lang}" if lang == "en" else f"captions.valid.{lang}-en" for lang in LANGS}
    counts = {}
    for lang, name in names.items():
        rows = []
        for number, caption in enumerate(read_lines(data / "captions" / f"valid.{lang}")):
            for score, photo in ((ALIKE, photos[number]), (DIFFERENT, photos[(number + 1) % len(photos)])):
                rows += [f"{score}\t{caption}\t{other}" for other in described[photo][:2]]
        write_lines(output / "similarity" / f"{name}.tsv", rows)
        counts[name] = len(rows)
    write_json(output / "similarity" / "manifest.json", {"name": "Captions of one photo or two", "tables": counts})


def write_pairs(data: Path, output: Path) -> None:
    """English captions with photos, captions of every language for fine-tuning, and the galleries for evaluation."""
    for split in SPLITS:
        ids = read_lines(data / "images" / f"{split}.ids")
        for lang in LANGS if split == "valid" else ("en",):
            captions = read_lines(data / "captions" / f"{split}.{lang}")
            write_lines(output / "text" / "pairs" / f"{split}.{lang}", captions)
            write_lines(output / "text" / "pairs" / f"{split}.{lang}.ids", [f"{i}\t{split}/{i}" for i in ids])
    train_ids = read_lines(data / "images" / "train.ids")
    for lang in LANGS:
        write_lines(output / "text" / "photos" / f"train.{lang}", read_lines(data / "captions" / f"train.{lang}"))
        write_lines(output / "text" / "photos" / f"train.{lang}.ids", [f"{i}\ttrain/{i}" for i in train_ids])
    five = [line.split("\t", 1) for line in read_lines(data / "captions" / "train.en5.tsv.gz")]
    write_lines(output / "text" / "pairs5" / "train.en", [caption for _, caption in five])
    write_lines(output / "text" / "pairs5" / "train.en.ids", [image for image, _ in five])
    for split in galleries(data):
        write_lines(output / "gallery" / f"{split}.ids", read_lines(data / "images" / f"{split}.ids"))
        for lang in LANGS:
            write_lines(output / "gallery" / f"{split}.{lang}", read_lines(data / "captions" / f"{split}.{lang}"))


def english_captions(data: Path, split: str) -> dict[str, list[str]]:
    """Photo -> its English captions: that of task 1, and the five of task 2 if the data has them."""
    ids = read_lines(data / "images" / f"{split}.ids")
    captions = {image: [text] for image, text in zip(ids, read_lines(data / "captions" / f"{split}.en"), strict=True)}
    more = data / "captions" / f"{split}.en5.tsv.gz"
    for line in read_lines(more) if more.is_file() else ():
        image, text = line.split("\t", 1)
        captions[image].append(text)
    return captions


def write_feature_directories(data: Path, output: Path, parallel: int) -> None:
    """Turn the arrays in the data into indexed feature directories.

    Raises:
        UserError: an array cannot be read.
    """
    # Imports torch.
    from mclip_fairseq.storage.features import write_features
    from mclip_fairseq.storage.projection import Projection

    photos = ("train", *galleries(data))
    ids = {split: read_lines(data / "images" / f"{split}.ids") for split in photos}

    def load(name: str) -> np.ndarray:
        path = data / "features" / f"{name}.npy"
        try:
            return np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:  # what NumPy raises for a damaged file
            raise UserError(f"{path}: is not a NumPy array ({first_line(error)}); copy it again") from error

    write_features(
        output / "features" / "image",
        [image for split in photos for image in ids[split]],
        np.concatenate([load(f"{split}.image") for split in photos]),
        model=TEACHER,
        normalized=True,
        preprocessing="as given with the data",
        modality="image",
    )
    texts = np.concatenate([load("train.text_en"), load("valid.text_en"), load("train.mt_text_en")])
    # The states before the teacher's projection are not in the data; the identity takes the projection's place.
    identity = Projection(np.eye(texts.shape[1], dtype=np.float32), math.log(TEACHER_SCALE))
    for name, projection in (("text", None), ("pooled", identity)):
        write_features(
            output / "features" / name,
            [f"{split}/{image}" for split in SPLITS for image in ids[split]] + [f"mt{i}" for i in range(parallel)],
            texts,
            model=TEACHER,
            normalized=True,
            preprocessing="as given with the data",
            modality="text",
            projection=projection,
        )


def prepare(data: Path, output: Path) -> str:
    """Write everything; returns a summary for the user.

    Raises:
        UserError: a file is missing or damaged.
    """
    for folder in ("mt", "captions", "images", "features"):
        if not (data / folder).is_dir():
            raise UserError(f"{data / folder}: not found; DATA must be the multi30k8k directory")
    counts = write_parallel(data, output)
    write_bitext(data, output)
    write_similarity(data, output)
    for split in galleries(data):
        write_classes(output / "classes" / split, LANGS, english_captions(data, split))
    write_pairs(data, output)
    write_feature_directories(data, output, counts["train"])
    return f"{output}: {counts['train']} + {counts['valid']} caption tuples in {', '.join(LANGS)}"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the multi30k8k directory")
    parser.add_argument("output", type=Path, help="directory to write")
    args = parser.parse_args(argv)
    return run_main("prepare.py", lambda: print(prepare(args.data, args.output)))


if __name__ == "__main__":
    sys.exit(main())
