"""Benchmarks from the directories that the scripts of `preprocess/` write, recognised by their manifest."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import UnionType
from typing import Any, cast

from mclip_fairseq.encoding.captions import read_language_captions
from mclip_fairseq.encoding.galleries import FeatureGallery, Gallery, ImageGallery
from mclip_fairseq.evaluation.benchmarks.base import Benchmark
from mclip_fairseq.evaluation.benchmarks.classification import LABELS, ClassificationBenchmark
from mclip_fairseq.evaluation.benchmarks.files import (
    AGAIN,
    check_pictures,
    choose_languages,
    file_below,
    read_table,
    whole_numbers,
)
from mclip_fairseq.evaluation.benchmarks.retrieval import RetrievalBenchmark
from mclip_fairseq.evaluation.benchmarks.text import BitextBenchmark, SimilarityBenchmark
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.storage.fields import check_fields
from mclip_fairseq.storage.files import printable, read_json

MANIFEST = "manifest.json"
IMAGES = "images.tsv"
DEFAULT_SPLIT = "test"
# The kind of a benchmark is the first of these that its manifest names.
KINDS = ("splits", "tables", "pairs", "languages")
Names = cast(UnionType, list | dict)  # of tables, pairs or languages; objects hold counts besides
FIELDS = {
    "name": str | None,
    "notes": list | None,
    "splits": Names | None,
    "tables": Names | None,
    "pairs": Names | None,
    "languages": Names | None,
}
CAPTION_FILES = {"captions": str, "ids": str}


@dataclass(frozen=True)
class Places:
    """Where images and features of the benchmarks are.

    Attributes:
        images_root: folder that `images.tsv` is relative to; None where only features are given.
        features: directories of `mclip-features`.
        languages: which to evaluate; None for all.
        hash_images: compare images by their hashes, with those of an earlier report.
    """

    images_root: Path | None = None
    features: Sequence[Path] = ()
    languages: Sequence[str] | None = None
    hash_images: bool = False


@dataclass(frozen=True)
class Description:
    """What a manifest says, checked.

    Attributes:
        folder: the directory of the benchmark.
        title: its name.
        notes: what a reader of the numbers must know.
        kind: one of `KINDS`.
        names: its splits, tables, pairs or languages.
        splits: split -> language -> its files; empty unless `kind` is "splits".
    """

    folder: Path
    title: str
    notes: Sequence[str]
    kind: str
    names: Sequence[str]
    splits: Mapping[str, Mapping[str, Any]]


def open_benchmark(source: str, places: Places) -> Benchmark:
    """Open a directory, or one of its splits.

    Args:
        source: `DIR` or `DIR:SPLIT`; the split is "test" where none is named.
        places: where its images and features are.

    Raises:
        UserError: its manifest or another file is malformed, or it lacks the split or a language.
    """
    folder, split = split_source(source)
    described = read_description(folder)
    if described.kind == "splits":
        return _retrieval(described, split or DEFAULT_SPLIT, places)
    if described.kind == "tables":
        return _similarity(described, split or DEFAULT_SPLIT, places)
    if split:
        raise UserError(f"{folder}:{split}: the benchmark has no splits; give {folder} alone")
    if described.kind == "pairs":
        return BitextBenchmark(folder, described.title, described.names, places.languages, described.notes)
    galleries = _galleries(folder, places, {name for name, _ in read_table(folder / LABELS, 2)})
    return ClassificationBenchmark(
        folder, described.title, described.names, places.languages, galleries, described.notes
    )


def split_source(source: str) -> tuple[Path, str]:
    """Directory and split of `DIR:SPLIT`; the split is empty where none is named, or the colon is part of a name."""
    name, colon, split = source.rpartition(":")
    return (Path(name), split) if colon and not Path(source).exists() else (Path(source), "")


def read_description(folder: Path) -> Description:
    """Read and check the manifest of a benchmark.

    Raises:
        UserError: it cannot be read, or a field is missing or has a wrong type.
    """
    file = folder / MANIFEST
    manifest = check_fields(file, read_json(file), FIELDS, AGAIN)
    kind = next((name for name in KINDS if name in manifest), None)
    if kind is None:
        raise UserError(f"{file}: unknown kind of benchmark; {AGAIN}")
    check_fields(file, manifest, {kind: Names}, AGAIN)
    names = list(manifest[kind])
    if odd := [name for name in names if not isinstance(name, str)]:
        raise UserError(f"{file}: {kind} holds {odd[0]!r}, which is not a name; {AGAIN}")
    splits = {}
    if kind == "splits" and names:
        splits = check_fields(file, manifest[kind], dict.fromkeys(names, dict), AGAIN)
    title = printable(manifest.get("name") or folder.name)
    notes = [printable(str(note)) for note in manifest.get("notes") or ()]
    return Description(folder, title, notes, kind, names, splits)


def _retrieval(described: Description, split: str, places: Places) -> RetrievalBenchmark:
    folder = described.folder
    if split not in described.splits:
        raise _no_split(folder, split, described.splits)
    captions = []
    for language in choose_languages(places.languages, described.splits[split], folder):
        files = check_fields(folder / MANIFEST, described.splits[split][language], CAPTION_FILES, AGAIN)
        captions.append(read_language_captions(language, *(file_below(folder, files[name]) for name in CAPTION_FILES)))
    fold_file = file_below(folder, f"{split}.folds.tsv")
    folds = read_folds(fold_file) if fold_file.is_file() else {}
    galleries = _galleries(folder, places, {name for each in captions for name in each.ids})
    return RetrievalBenchmark(titled(described.title, split), captions, galleries, folds, described.notes)


def _similarity(described: Description, split: str, places: Places) -> SimilarityBenchmark:
    """The tables of one split; they are named SET.SPLIT.LANGUAGE."""
    split_of = {table: table.partition(".")[2].split(".")[0] for table in described.names}
    tables = [table for table in described.names if split_of[table] == split]
    if not tables:
        raise _no_split(described.folder, split, split_of.values())
    return SimilarityBenchmark(
        described.folder, titled(described.title, split), tables, places.languages, described.notes
    )


def _no_split(folder: Path, split: str, names: Iterable[str]) -> UserError:
    splits = [printable(name) for name in dict.fromkeys(names) if name]
    if not splits:
        return UserError(f"{folder / MANIFEST}: names no split; {AGAIN}")
    return UserError(f"{folder}: has no split {split!r}; name one of {', '.join(splits)}, as in {folder}:{splits[0]}")


def titled(title: str, split: str) -> str:
    """The name of a benchmark, with its split unless that is the usual one."""
    return title if split == DEFAULT_SPLIT else f"{title} ({split})"


def read_folds(file: Path) -> dict[str, int]:
    """Image id -> its fold; fold numbers are below the number of images.

    Raises:
        UserError: naming the line with another number.
    """
    names, folds = zip(*read_table(file, 2), strict=True)
    return dict(zip(names, whole_numbers(file, folds, below=len(folds)), strict=True))


def _galleries(folder: Path, places: Places, needed: set[str]) -> list[Gallery]:
    """The galleries of a benchmark; features that lack an image it needs belong to another benchmark."""
    stores = [(FeatureStore.open(path), path) for path in places.features]
    galleries: list[Gallery] = [FeatureGallery(store, path) for store, path in stores if needed <= set(store.ids)]
    if places.images_root is not None:
        check_pictures(folder / IMAGES)
        galleries.append(ImageGallery(folder / IMAGES, places.images_root, hashed=places.hash_images))
    return galleries
