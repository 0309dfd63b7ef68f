"""Retrieval of images by captions in many languages, and of captions by images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.encoding.captions import Captions
from mclip_fairseq.encoding.galleries import Encoder, Gallery, encode_in_chunks, gallery_for
from mclip_fairseq.evaluation.benchmarks.base import Settings
from mclip_fairseq.evaluation.metrics.languages import evaluate_languages, gallery_of_captions
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks, top_images
from mclip_fairseq.storage.errors import UserError

SHOWN_IMAGES = 5


@dataclass(frozen=True)
class Encoded:
    """Everything that is compared.

    Attributes:
        captions: the captions of each language.
        gallery: what they are searched in.
        used: (I,) int64, the rows of the gallery that are encoded.
        image: (I, D) their features.
        text: language -> (T, D) caption features.
        own: language -> (T,) int64, index into ``image`` of each caption's own image.
        captioned_only: whether a language is searched only in the images that its captions name.
    """

    captions: Sequence[Captions]
    gallery: Gallery
    used: np.ndarray
    image: Tensor
    text: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    captioned_only: bool


class RetrievalBenchmark:
    """Captions of the same or of different images in many languages.

    Args:
        name: for tables.
        captions: of each language.
        galleries: the images, or features of them by one or more teachers.
        folds: image id -> its fold; empty where there are none.
        notes: see ``Benchmark``.

    Raises:
        UserError: a caption names an image that is not there.
    """

    kind = "retrieval"
    headline = "mean_recall"

    def __init__(
        self,
        name: str,
        captions: Sequence[Captions],
        galleries: Sequence[Gallery],
        folds: Mapping[str, int] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.captions = captions
        self.galleries = galleries
        self.folds = dict(folds or {})
        self.notes = notes
        for gallery in galleries:  # errors come before a model is loaded
            for part in captions:
                gallery.index.rows(part)

    def describe(self) -> dict[str, Any]:
        """See ``Benchmark``."""
        return {
            "captions": {part.language: part.describe() for part in self.captions},
            "galleries": [gallery.describe() for gallery in self.galleries],
            "folds": sorted(self.folds.items()),
        }

    def encode(self, model: Encoder, settings: Settings) -> Encoded:
        """Encode every caption, and each image once."""
        gallery = gallery_for(model, self.galleries, self.name)
        captions = [first_captions(part) for part in self.captions] if settings.captions == "first" else self.captions
        rows = {part.language: gallery.index.rows(part) for part in captions}
        everything = settings.gallery == "all"
        used = np.arange(len(gallery.index.names)) if everything else np.unique(np.concatenate(list(rows.values())))
        image = gallery.encode(model, used, settings.batch_size)
        text = {
            part.language: encode_in_chunks(
                model.encode_text, part.texts, settings.batch_size, f"captions ({part.language})"
            )
            for part in captions
        }
        own = {language: torch.from_numpy(np.searchsorted(used, found)) for language, found in rows.items()}
        return Encoded(captions, gallery, used, image, text, own, captioned_only=not everything)

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """See ``Benchmark``."""
        return self.measure(self.encode(model, settings), settings)

    def measure(self, encoded: Encoded, settings: Settings) -> dict[str, Any]:
        """The report of what is encoded: over all images and, where there are folds, as their mean."""
        parts = (encoded.text, encoded.image, encoded.own, settings.protocol, encoded.captioned_only)
        report = evaluate_languages(*parts)
        report["gallery_searched"] = len(encoded.used)
        if self.folds:
            report["folds"] = self.measure_folds(encoded, settings)
        return report

    def measure_folds(self, encoded: Encoded, settings: Settings) -> dict[str, Any]:
        """The mean over the folds; images without one are no distractors here."""
        names = [encoded.gallery.index.names[row] for row in encoded.used]
        inside = torch.tensor([name in self.folds for name in names])
        folds = torch.tensor([self.folds[name] for name in names if name in self.folds])
        row_inside = inside.cumsum(0) - 1
        own = {}
        for language, rows in encoded.own.items():
            if not inside[rows].all():
                missing = names[int(rows[~inside[rows]][0])]
                raise UserError(
                    f"{self.name}: image {missing!r} of {language} is in no fold; make the benchmark again."
                )
            own[language] = row_inside[rows]
        parts = (encoded.text, encoded.image[inside], own, settings.protocol, encoded.captioned_only)
        found = {"number": len(folds.unique()), "images": int(folds.bincount().max())}
        return found | evaluate_languages(*parts, folds=folds)


def first_captions(captions: Captions) -> Captions:
    """The first caption of each image, in the order of the file."""
    first = list({name: row for row, name in reversed(list(enumerate(captions.ids)))}.values())
    rows = sorted(first)
    return replace(captions, texts=[captions.texts[row] for row in rows], ids=[captions.ids[row] for row in rows])


def examples_of(encoded: Encoded, number: int) -> list[Any]:
    """The nearest images of a few queries, searched as the numbers were."""
    from mclip_fairseq.evaluation.reports.pictures import Example, pick_queries

    texts = {part.language: part.texts for part in encoded.captions}
    everything = torch.arange(len(encoded.image))
    examples = []
    for language, row in pick_queries({key: len(value) for key, value in texts.items()}, number):
        searched, own = gallery_of_captions(everything, encoded.own[language], encoded.captioned_only)
        query, target, image = encoded.text[language][row, None], own[row, None], encoded.image[searched]
        scores, found = top_images(query, image, min(SHOWN_IMAGES, len(image)))
        hits = (found[0] == target).nonzero()
        examples.append(
            Example(
                text=texts[language][row],
                language=language,
                images=[encoded.gallery.picture(int(encoded.used[searched[place]])) for place in found[0]],
                scores=scores[0].tolist(),
                own=int(hits[0]) if len(hits) else None,
                rank=int(retrieval_ranks(query, image, target).t2i),
            )
        )
    return examples
