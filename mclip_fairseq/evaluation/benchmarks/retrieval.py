"""Retrieval of images by captions in many languages, and of captions by images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.encoding.captions import Captions
from mclip_fairseq.encoding.galleries import Encoder, Gallery, encode_in_chunks, gallery_for, reader_of
from mclip_fairseq.encoding.matching import PairScorer, encode_image_states
from mclip_fairseq.evaluation.benchmarks.base import Benchmark
from mclip_fairseq.evaluation.benchmarks.files import AGAIN
from mclip_fairseq.evaluation.benchmarks.reranking import reranked_languages
from mclip_fairseq.evaluation.benchmarks.settings import Settings
from mclip_fairseq.evaluation.metrics.hubs import without_hubs
from mclip_fairseq.evaluation.metrics.languages import evaluate_languages
from mclip_fairseq.storage.errors import UserError

ONE_IMAGE, SAME_CAPTIONS = "One image", "The same captions"  # how notes on such captions begin


@dataclass(frozen=True)
class Encoded:
    """Everything that is compared.

    Attributes:
        captions: the captions of each language.
        gallery: what they are searched in.
        used: (I,) int64, the rows of the gallery that are encoded.
        image: (I, D) their features.
        text: language -> (T, D) caption features.
        own: language -> (T,) int64, index into `image` of each caption's own image.
        captioned_only: whether a language is searched only in the images that its captions name.
        scorers: language -> matching scores of pairs of its captions and the images; empty without re-ranking.
    """

    captions: Sequence[Captions]
    gallery: Gallery
    used: np.ndarray
    image: Tensor
    text: Mapping[str, Tensor]
    own: Mapping[str, Tensor]
    captioned_only: bool
    scorers: Mapping[str, PairScorer] = field(default_factory=dict)


class RetrievalBenchmark(Benchmark):
    """Captions of the same or of different images in many languages.

    Args:
        name: for tables.
        captions: of each language.
        galleries: the images, or features of them by one or more teachers.
        folds: image id -> its fold; empty if the benchmark has no folds.
        notes: see `Benchmark`.

    Raises:
        UserError: a caption names an image that a gallery lacks.
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
        own = [note for each in captions for note in one_image_note(each, galleries)]
        self.notes: Sequence[str] = [*notes, *own, *same_captions_notes(captions)]
        for gallery in galleries:  # find unknown images now, before a model is loaded
            for language in captions:
                gallery.index.rows(language)

    def counts(self) -> dict[str, dict[str, int]]:
        """Language -> the number of images that its captions name, and of its captions."""
        return {each.language: {"images": len(set(each.ids)), "captions": len(each.texts)} for each in self.captions}

    def describe(self) -> dict[str, Any]:
        """Files and hashes of the captions of each language and of the galleries, and the folds."""
        return {
            "captions": {language.language: language.describe() for language in self.captions},
            "galleries": [gallery.describe() for gallery in self.galleries],
            "folds": sorted(self.folds.items()),
        }

    def evaluate(self, model: Encoder, settings: Settings) -> dict[str, Any]:
        """Recalls per language over all images and, if the benchmark has folds, their mean over folds."""
        return self.measure(self.encode_all(model, settings), settings)

    def encode_all(self, model: Encoder, settings: Settings) -> Encoded:
        """Encode every caption, and each image once."""
        gallery = gallery_for(model, self.galleries, self.name)
        captions = self.captions if settings.captions == "all" else [first_captions(each) for each in self.captions]
        rows = {each.language: gallery.index.rows(each) for each in captions}
        everything = settings.gallery == "all"
        used = np.arange(len(gallery.index.names)) if everything else np.unique(np.concatenate(list(rows.values())))
        image = gallery.encode(model, used, settings.batch_size)
        text = {
            each.language: encode_in_chunks(
                reader_of(model, each.language).encode_text,
                each.texts,
                settings.batch_size,
                f"captions ({each.language})",
            )
            for each in captions
        }
        own = {language: torch.from_numpy(np.searchsorted(used, images)) for language, images in rows.items()}
        if settings.hubs:
            text, image = self.correct_hubs(model, gallery, text, image, settings)
        scorers = self.scorers(model, gallery, used, captions, settings) if settings.rerank else {}
        return Encoded(captions, gallery, used, image, text, own, not everything, scorers)

    def correct_hubs(
        self, model: Encoder, gallery: Gallery, text: Mapping[str, Tensor], image: Tensor, settings: Settings
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Features that rank as `metrics.hubs` says, with the bank of the settings; see `without_hubs`.

        Raises:
            UserError: a language has no bank, or the gallery lacks an image of the bank.
        """
        banks = {each.language: each for each in settings.hubs}
        missing = sorted(text.keys() - banks.keys())
        if missing:
            raise UserError(f"--hub-captions: has no captions in {missing[0]}; give some for each language")
        rows = np.unique(np.concatenate([gallery.index.rows(banks[language]) for language in text]))
        bank = {
            language: encode_in_chunks(
                reader_of(model, language).encode_text,
                banks[language].texts,
                settings.batch_size,
                f"bank ({language})",
            )
            for language in text
        }
        return without_hubs(text, image, bank, gallery.encode(model, rows, settings.batch_size), settings.hub_scale)

    def scorers(
        self, model: Any, gallery: Gallery, used: np.ndarray, captions: Sequence[Captions], settings: Settings
    ) -> dict[str, PairScorer]:
        """Matching scores of any caption of a language with any image that is used.

        Raises:
            UserError: the model cannot match, or the gallery holds features only.
        """
        if not model.can_match:
            raise UserError(
                f"{model.name}: compares features only and cannot re-rank; leave out --rerank, or evaluate a model "
                "such as ccrk"
            )
        states = encode_image_states(model, [gallery.picture(row) for row in used])
        return {each.language: PairScorer(model, each.texts, states, settings.batch_size) for each in captions}

    def measure(self, encoded: Encoded, settings: Settings) -> dict[str, Any]:
        """The metrics of encoded captions and images: over all images and, if the benchmark has folds, their mean."""
        report = evaluate_languages(encoded.text, encoded.image, encoded.own, settings.protocol, encoded.captioned_only)
        report["gallery_searched"] = len(encoded.used)
        if encoded.scorers:
            report["reranked"] = self.measure_reranked(encoded, settings)
        if self.folds:
            report["folds"] = self.measure_folds(encoded, settings)
        return report

    def measure_reranked(self, encoded: Encoded, settings: Settings) -> dict[str, Any]:
        """The same metrics after re-ranking: over all images and, if the benchmark has folds, their mean."""
        everything = (encoded.text, encoded.image, encoded.own, encoded.scorers, settings.rerank)
        report = reranked_languages(*everything, encoded.captioned_only)
        if self.folds:
            names = [encoded.gallery.index.names[row] for row in encoded.used]
            folds = torch.tensor([self.folds.get(name, -1) for name in names])
            report["folds"] = reranked_languages(*everything, encoded.captioned_only, folds)
        return report

    def measure_folds(self, encoded: Encoded, settings: Settings) -> dict[str, Any]:
        """The mean over folds; an image without a fold belongs to another split and is not a distractor here.

        Raises:
            UserError: the image of a caption is in no fold.
        """
        names = [encoded.gallery.index.names[row] for row in encoded.used]
        inside = torch.tensor([name in self.folds for name in names])
        folds = torch.tensor([self.folds[name] for name in names if name in self.folds])
        row_inside = inside.cumsum(0) - 1  # row of an image among those inside
        own = {}
        for language, rows in encoded.own.items():
            if not inside[rows].all():
                missing = names[int(rows[~inside[rows]][0])]
                raise UserError(f"{self.name}: image {missing!r} of {language} is in no fold; {AGAIN}")
            own[language] = row_inside[rows]
        sizes = {"number": len(folds.unique()), "images": int(folds.bincount().max())}
        return sizes | evaluate_languages(
            encoded.text, encoded.image[inside], own, settings.protocol, encoded.captioned_only, folds=folds
        )


def one_image_note(captions: Captions, galleries: Sequence[Gallery]) -> list[str]:
    """A note where all captions of a language name one image, so that there is nothing to confuse it with."""
    sizes = [len(gallery.index.names) for gallery in galleries]
    if len(set(captions.ids)) > 1:
        return []
    beside = f" of the {max(sizes)}" if sizes and max(sizes) > 1 else ""
    return [
        f"{ONE_IMAGE}: the captions of {captions.language} name only {captions.ids[0]!r}{beside}; searched in the "
        "images that captions name, every recall is 100 and says nothing."
    ]


def same_captions_notes(captions: Sequence[Captions]) -> list[str]:
    """A note for each language whose captions are those of an earlier one: one file was given for two."""
    first: dict[tuple[str, ...], str] = {}
    earlier = {each.language: first.setdefault((*each.texts, *each.ids), each.language) for each in captions}
    return [
        f"{SAME_CAPTIONS} in {other} and {language}: an average over languages counts them twice."
        for language, other in earlier.items()
        if language != other
    ]


def first_captions(captions: Captions) -> Captions:
    """The first caption of each image, in the order of the file."""
    first_row: dict[str, int] = {}
    for row, name in enumerate(captions.ids):
        first_row.setdefault(name, row)
    rows = list(first_row.values())
    return replace(captions, texts=[captions.texts[row] for row in rows], ids=[captions.ids[row] for row in rows])
