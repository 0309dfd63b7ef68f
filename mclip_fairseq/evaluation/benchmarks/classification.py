"""Zero-shot classification of photographs by class names in many languages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mclip_fairseq.encoding.galleries import Encoder, Gallery, encode_in_chunks, gallery_for
from mclip_fairseq.evaluation.benchmarks.base import Settings, chosen, file_below, read_table, whole_numbers
from mclip_fairseq.evaluation.metrics.classification import class_features, zero_shot_accuracy
from mclip_fairseq.evaluation.metrics.languages import average_languages
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import file_sha256, read_lines

LABELS = "labels.tsv"
NUMBERS = 10**9  # of classes


class ClassificationBenchmark:
    """Class names and prompts per language, and labelled photographs, as `preprocess/babel_imagenet.py` writes them.

    Args:
        folder: with `classes.LANG.tsv`, `prompts.LANG` and `labels.tsv`.
        name: for tables.
        there: the languages of the manifest.
        languages: which; None takes all.
        galleries: the photographs, or features of them.
        notes: see ``Benchmark``.

    Raises:
        UserError: a file is missing or not of this form.
    """

    kind = "classification"
    headline = "top1"

    def __init__(
        self,
        folder: Path,
        name: str,
        there: Sequence[str],
        languages: Sequence[str] | None,
        galleries: Sequence[Gallery],
        notes: Sequence[str],
    ) -> None:
        self.name = name
        self.folder = folder
        self.galleries = galleries
        self.languages = chosen(languages, dict.fromkeys(there), folder)
        files = {lang: file_below(folder, f"classes.{lang}.tsv") for lang in self.languages}
        self.classes = {lang: read_table(file, 2) for lang, file in files.items()}
        self.numbers = {
            lang: np.array(whole_numbers(file, [number for number, _ in self.classes[lang]], NUMBERS))
            for lang, file in files.items()
        }
        self.prompts = {lang: self._prompts(lang) for lang in self.languages}
        labels = read_table(folder / LABELS, 2)
        self.ids = [name for name, _ in labels]
        self.labels = np.array(whole_numbers(folder / LABELS, [label for _, label in labels], NUMBERS))
        self.notes: Sequence[str] = [*notes, *self._bare_names()]

    def _prompts(self, language: str) -> list[str]:
        path = file_below(self.folder, f"prompts.{language}")
        return read_lines(path) if path.is_file() else []

    def _bare_names(self) -> list[str]:
        bare = [language for language, prompts in self.prompts.items() if not prompts]
        if not bare or len(bare) == len(self.prompts):
            return []
        return [f"No prompts in {', '.join(bare)}: bare class names there, and no fair comparison with the others."]

    def describe(self) -> dict[str, Any]:
        """See ``Benchmark``."""
        names = [f"classes.{language}.tsv" for language in self.languages]
        names += [f"prompts.{language}" for language, prompts in self.prompts.items() if prompts]
        counts = {"photos": len(self.ids), "classes": {lang: len(rows) for lang, rows in self.classes.items()}}
        return counts | {"sha256": {name: file_sha256(self.folder / name) for name in [LABELS, *names]}}

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """See ``Benchmark``; a language is tried on the photographs whose class it names."""
        gallery = gallery_for(model, self.galleries, self.name)
        rows = gallery.index.rows_of(self.ids, self.folder / LABELS)
        image = gallery.encode(model, rows, settings.batch_size)
        results, confidence = {}, {}
        for language, classes in self.classes.items():
            numbers = self.numbers[language]
            kept = np.flatnonzero(np.isin(self.labels, numbers))
            if not len(kept):
                raise UserError(f"{self.folder}: no photograph is of a class that {language!r} names.")
            order = np.argsort(numbers)
            labels = order[np.searchsorted(numbers[order], self.labels[kept])]

            def encode(texts: list[str], language: str = language) -> torch.Tensor:
                return encode_in_chunks(model.encode_text, texts, settings.batch_size, f"classes ({language})")

            prompts = self.prompts[language]
            features = class_features([name for _, name in classes], prompts or ["{}"], encode)
            results[language], confidence[language] = zero_shot_accuracy(
                image[torch.from_numpy(kept)], features, torch.from_numpy(labels)
            )
            results[language] |= {"classes": len(classes), "prompts": len(prompts), "photos": len(kept)}
        return {"results": results, "confidence": confidence, "average": average_languages(results)}
