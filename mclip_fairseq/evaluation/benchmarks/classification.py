"""Zero-shot classification of photographs by class names in many languages."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclip_fairseq.encoding.galleries import Encoder, Gallery, encode_in_chunks, gallery_for, reader_of
from mclip_fairseq.evaluation.benchmarks.base import Benchmark
from mclip_fairseq.evaluation.benchmarks.files import AGAIN, choose_languages, file_below, read_table, whole_numbers
from mclip_fairseq.evaluation.benchmarks.settings import Settings
from mclip_fairseq.evaluation.metrics.classification import class_features, zero_shot_accuracy
from mclip_fairseq.evaluation.metrics.languages import average_languages
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_lines

LABELS = "labels.tsv"
MOST_CLASSES = 10**9
BARE_NAME = "{}"  # the prompt of a language without prompts


class ClassificationBenchmark(Benchmark):
    """Class names and prompts per language, and labelled photographs, as `preprocess/babel_imagenet.py` writes them.

    Args:
        folder: with `classes.LANG.tsv`, `prompts.LANG` and `labels.tsv`.
        name: for tables.
        available: the languages of the manifest.
        languages: which to evaluate; None for all.
        galleries: the photographs, or features of them.
        notes: see `Benchmark`.

    Raises:
        UserError: a file is missing or malformed, or no photograph is of a class that a language names.
    """

    kind = "classification"
    headline = "top1"

    def __init__(
        self,
        folder: Path,
        name: str,
        available: Sequence[str],
        languages: Sequence[str] | None,
        galleries: Sequence[Gallery],
        notes: Sequence[str],
    ) -> None:
        self.name = name
        self.folder = folder
        self.galleries = galleries
        self.languages = choose_languages(languages, dict.fromkeys(available), folder)
        files = {lang: file_below(folder, f"classes.{lang}.tsv") for lang in self.languages}
        self.classes = {lang: read_table(file, 2) for lang, file in files.items()}
        self.numbers = {
            lang: np.array(whole_numbers(file, [number for number, _ in self.classes[lang]], MOST_CLASSES))
            for lang, file in files.items()
        }
        self.prompts = {lang: self._prompts(lang) for lang in self.languages}
        labels = read_table(folder / LABELS, 2)
        self.ids = [name for name, _ in labels]
        self.labels = np.array(whole_numbers(folder / LABELS, [label for _, label in labels], MOST_CLASSES))
        for lang, file in files.items():
            if not np.isin(self.labels, self.numbers[lang]).any():
                raise UserError(f"{file}: no photograph of {LABELS} is of a class that it names; {AGAIN}")
        self.notes: Sequence[str] = [*notes, *self._bare_names()]

    def _prompts(self, language: str) -> list[str]:
        path = file_below(self.folder, f"prompts.{language}")
        return read_lines(path) if path.is_file() else []

    def _bare_names(self) -> list[str]:
        """A note where only some languages have prompts."""
        bare = [language for language, prompts in self.prompts.items() if not prompts]
        if not bare or len(bare) == len(self.prompts):
            return []
        return [f"No prompts in {', '.join(bare)}: bare class names are used, so other languages have an advantage."]

    def describe(self) -> dict[str, Any]:
        """Counts of photographs and classes, and the hash of every file."""
        names = [f"classes.{language}.tsv" for language in self.languages]
        names += [f"prompts.{language}" for language, prompts in self.prompts.items() if prompts]
        counts = {"photos": len(self.ids), "classes": {lang: len(rows) for lang, rows in self.classes.items()}}
        return counts | {"sha256": {name: file_sha256(self.folder / name) for name in [LABELS, *names]}}

    def counts(self) -> dict[str, dict[str, int]]:
        """Language -> the number of photographs."""
        return {language: {"images": len(self.ids)} for language in self.languages}

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """Accuracy per language, on the photographs whose class the language names, with averages and intervals."""
        gallery = gallery_for(model, self.galleries, self.name)
        rows = gallery.index.rows_of(self.ids, self.folder / LABELS)
        image = gallery.encode(model, rows, settings.batch_size)
        results, confidence = {}, {}
        for language, classes in self.classes.items():
            numbers = self.numbers[language]
            kept = np.flatnonzero(np.isin(self.labels, numbers))
            # A label is a class number of the whole set; the metric wants the row of the class in this language.
            order = np.argsort(numbers)
            labels = order[np.searchsorted(numbers[order], self.labels[kept])]
            prompts = self.prompts[language]
            encode_names = partial(
                encode_in_chunks,
                reader_of(model, language).encode_text,
                batch_size=settings.batch_size,
                label=f"classes ({language})",
            )
            features = class_features([name for _, name in classes], prompts or [BARE_NAME], encode_names)
            results[language], confidence[language] = zero_shot_accuracy(
                image[torch.from_numpy(kept)], features, torch.from_numpy(labels)
            )
            results[language] |= {"classes": len(classes), "prompts": len(prompts), "photos": len(kept)}
        return {"results": results, "confidence": confidence, "average": average_languages(results)}
