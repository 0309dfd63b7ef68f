#!/usr/bin/env python3
"""Multi30K: captions of Flickr30k's images in English, German, French and Czech.

From the repository "dataset" of Multi30K (Elliott et al., 2016 and 2017; Barrault et al., 2018), folder `data`:

- task 1: one caption per image and its translations, `task1/raw/SPLIT.LANG.gz`, `task1/image_splits/SPLIT.txt`;
- task 2: five captions per image, written independently in English and in German, `task2/raw/SPLIT.N.LANG.gz`,
  `task2/image_splits/SPLIT_images.txt`.

Images: Flickr30k; those of test_2017_flickr and test_2018_flickr come with the shared task of their year, and those of
test_2017_mscoco are in COCO 2014. With --images DIR, choose the splits whose images are in DIR with --splits. Missing
splits are skipped.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from corpora.captions import Caption
from corpora.coco import image_paths
from corpora.command import Corpus, Options, run_corpus
from corpora.files import check_same_length, load_lines, numbered_lines, unique
from corpora.sources import Sources, check_folder

from mclip_fairseq.storage.errors import UserError

LANGUAGES = ("en", "de", "fr", "cs")
OUTPUT_NAMES = {"val": "valid", "test_2016": "test_2016_flickr"}
SPLITS = {
    1: ("train", "val", "test_2016_flickr", "test_2017_flickr", "test_2018_flickr", "test_2017_mscoco"),
    2: ("train", "val", "test_2016"),
}
IMAGES = {
    "train": 29000,
    "valid": 1014,
    "test_2016_flickr": 1000,
    "test_2017_flickr": 1000,
    "test_2018_flickr": 1071,
    "test_2017_mscoco": 461,
}
TASK_1 = {(split, lang): (count, count) for split, count in IMAGES.items() for lang in LANGUAGES}
TASK_2 = {
    (split, lang): (5 * IMAGES[split], IMAGES[split])
    for split in ("train", "valid", "test_2016_flickr")
    for lang in ("en", "de")
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Name the source files."""
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="the repository's folder data")
    parser.add_argument("--task", type=int, choices=tuple(SPLITS), default=1, help="which captions to use (default: 1)")
    parser.add_argument(
        "--languages", nargs="+", choices=LANGUAGES, default=LANGUAGES, help="languages to write (default: all)"
    )
    parser.add_argument(
        "--splits", nargs="+", metavar="SPLIT", help="splits to write, by the repository's names (default: all)"
    )


def read_images(path: Path) -> list[str]:
    """Image names of a split, in the order of the captions; `#` starts the number of a caption, which is dropped."""
    lines = ((place, line.strip().partition("#")[0]) for place, line in numbered_lines(path))
    return [name for _, name in unique(((place, name) for place, name in lines if name), str, "image")]


def caption_files(folder: Path, task: int, split: str, lang: str) -> list[Path]:
    """The existing files of one split and language: none, one (task 1) or five (task 2).

    Raises:
        UserError: only some of the five exist.
    """
    middles = [""] if task == 1 else [f".{number}" for number in range(1, 6)]
    files: list[Path] = []
    for middle in middles:
        packed, plain = (folder / "raw" / f"{split}{middle}.{lang}{ending}" for ending in (".gz", ""))
        files += [path for path in (packed, plain) if path.is_file()][:1]
    if files and len(files) < len(middles):
        raise UserError(
            f"{folder / 'raw'}: has {len(files)} of the {len(middles)} files {split}.N.{lang}.gz; download the others"
        )
    return files


def read(options: Options, sources: Sources) -> Iterator[Caption]:
    """All captions of the chosen task."""
    task = options.task
    folder = check_folder(options.data / f"task{task}")
    if wrong := set(options.splits or ()) - set(SPLITS[task]):
        raise UserError(f"--splits {wrong.pop()}: task {task} has {', '.join(SPLITS[task])}")
    for split in options.splits or SPLITS[task]:
        list_name = f"{split}.txt" if task == 1 else f"{split}_images.txt"
        files = {lang: caption_files(folder, task, split, lang) for lang in options.languages}
        if not any(files.values()):
            continue
        list_file = sources.file(folder / "image_splits" / list_name)
        images = read_images(list_file)
        check_images(options.images, split, images)
        for lang, paths in files.items():
            if not paths:
                continue
            sides = {path: load_lines(sources.file(path)) for path in paths}
            check_same_length({list_file: images, **sides})
            yield from captions_of(OUTPUT_NAMES.get(split, split), lang, images, list(sides.values()))


def check_images(root: Path | None, split: str, images: list[str]) -> None:
    """Check that the folder has images of a split, because whole splits have theirs elsewhere.

    Raises:
        UserError: the folder has none of them.
    """
    if root is None or any((root / path).is_file() for name in images for path in image_paths(name)):
        return
    raise UserError(
        f"{root}: has none of the images of {split}; add them, or choose the splits whose images it has, "
        "as in --splits train val test_2016_flickr"
    )


def captions_of(split: str, lang: str, images: list[str], sides: list[list[tuple[str, str]]]) -> Iterator[Caption]:
    """Captions image by image."""
    for image, *lines in zip(images, *sides, strict=True):
        for place, text in lines:
            yield Caption(split, lang, image, text, place, image_paths(image))


CORPUS = Corpus(
    lambda options: f"Multi30K task {options.task}",
    add_options,
    read,
    expected=lambda options: TASK_1 if options.task == 1 else TASK_2,
    notes=(
        "Task 1 has one caption per image; mCLIP is tested on its test_2016_flickr.",
        "Task 2 has five in English and German; M3P, UC2 and CCLM are tested on those, and on task 1 in French and "
        "Czech.",
    ),
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit status."""
    return run_corpus(CORPUS, __doc__, "multi30k.py", argv)


if __name__ == "__main__":
    sys.exit(main())
