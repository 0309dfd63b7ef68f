"""Benchmarks from the directories that the scripts of `preprocess/` write, told by their manifest."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mclip_fairseq.encoding.captions import read_captions
from mclip_fairseq.encoding.galleries import FeatureGallery, Gallery, ImageGallery
from mclip_fairseq.evaluation.benchmarks.base import Benchmark, chosen, file_below, read_table, whole_numbers
from mclip_fairseq.evaluation.benchmarks.classification import LABELS, ClassificationBenchmark
from mclip_fairseq.evaluation.benchmarks.retrieval import RetrievalBenchmark
from mclip_fairseq.evaluation.benchmarks.text import BitextBenchmark, SimilarityBenchmark
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting, printable, read_json

MANIFEST = "manifest.json"
IMAGES = "images.tsv"
DEFAULT_SPLIT = "test"


@dataclass(frozen=True)
class Places:
    """Where images and features of the benchmarks are.

    Attributes:
        images_root: folder that `images.tsv` is relative to; None where only features are given.
        features: directories of `mclip-features`.
        languages: which to evaluate; None takes all.
    """

    images_root: Path | None = None
    features: Sequence[Path] = ()
    languages: Sequence[str] | None = None


def open_benchmark(source: str, places: Places) -> Benchmark:
    """Open a directory, or one of its splits.

    Args:
        source: `DIR` or `DIR:SPLIT`; the split is "test" where none is named.
        places: see there.

    Raises:
        UserError: it has no manifest of a known form, or lacks the split or a language.
    """
    name, colon, split = source.rpartition(":")
    folder = Path(source)
    if colon and not folder.exists():
        folder = Path(name)
    else:
        split = ""
    manifest = read_json(folder / MANIFEST)
    if not isinstance(manifest, dict):
        raise UserError(f"{folder / MANIFEST}: is not a JSON object; make the directory by a script of preprocess/.")
    with expecting(folder / MANIFEST, "a manifest that a script of preprocess/ writes"):
        return _open(folder, manifest, split, places)


def _open(folder: Path, manifest: dict[str, Any], split: str, places: Places) -> Benchmark:
    title = printable(str(manifest.get("name", folder.name)))
    notes = [printable(str(note)) for note in manifest.get("notes", ())]
    if "splits" in manifest:
        return _retrieval(folder, manifest, split or DEFAULT_SPLIT, title, notes, places)
    if "tables" in manifest:
        return _similarity(folder, list(manifest["tables"]), split or DEFAULT_SPLIT, title, notes, places)
    if split:
        raise UserError(f"{folder}:{split}: has no splits; give {folder} alone.")
    if "pairs" in manifest:
        return BitextBenchmark(folder, title, list(manifest["pairs"]), places.languages, notes)
    if "languages" in manifest:
        galleries = _galleries(folder, places, {name for name, _ in read_table(folder / LABELS, 2)})
        return ClassificationBenchmark(folder, title, list(manifest["languages"]), places.languages, galleries, notes)
    raise UserError(f"{folder / MANIFEST}: is of no kind that is known; make the directory by a script of preprocess/.")


def _similarity(
    folder: Path, tables: list[str], split: str, title: str, notes: list[str], places: Places
) -> SimilarityBenchmark:
    """The tables of one split; they are named SET.SPLIT.LANGUAGE."""
    there = [table for table in tables if table.split(".")[1:2] == [split]]
    if not there:
        raise _no_split(folder, split, (table.split(".")[1] for table in tables if table.count(".") > 1))
    return SimilarityBenchmark(folder, titled(title, split), there, places.languages, notes)


def _no_split(folder: Path, split: str, there: Iterable[str]) -> ValueError:
    splits = [printable(name) for name in dict.fromkeys(there)]
    if not splits:
        return ValueError(f"{folder / MANIFEST}: names no split; make the directory again.")
    return ValueError(f"{folder}: has no split {split!r}; name one of {', '.join(splits)}, as in {folder}:{splits[0]}.")


def titled(title: str, split: str) -> str:
    """The name of a benchmark, with its split unless that is the usual one."""
    return title if split == DEFAULT_SPLIT else f"{title} ({split})"


def _retrieval(
    folder: Path, manifest: dict[str, Any], split: str, title: str, notes: list[str], places: Places
) -> RetrievalBenchmark:
    splits = manifest["splits"]
    if split not in splits:
        raise _no_split(folder, split, splits)
    there = splits[split]
    captions = [
        read_captions(language, *(file_below(folder, there[language][part]) for part in ("captions", "ids")))
        for language in chosen(places.languages, there, folder)
    ]
    file = file_below(folder, f"{split}.folds.tsv")
    folds = read_folds(file) if file.is_file() else {}
    galleries = _galleries(folder, places, {name for part in captions for name in part.ids})
    return RetrievalBenchmark(titled(title, split), captions, galleries, folds, notes)


def read_folds(file: Path) -> dict[str, int]:
    """Image id -> its fold, of which there are no more than images.

    Raises:
        UserError: naming the line with another number.
    """
    names, folds = zip(*read_table(file, 2), strict=True)
    return dict(zip(names, whole_numbers(file, folds, below=len(folds)), strict=True))


def _galleries(folder: Path, places: Places, needed: set[str]) -> list[Gallery]:
    """What is given; features that lack an image that is needed are those of another benchmark."""
    from mclip_fairseq.storage.features import FeatureStore

    stores = [(FeatureStore.open(path), path) for path in places.features]
    galleries: list[Gallery] = [FeatureGallery(store, path) for store, path in stores if needed <= set(store.ids)]
    if places.images_root is not None:
        galleries.append(ImageGallery(folder / IMAGES, places.images_root))
    return galleries
