"""The answers of `mclip-search query`: hits of texts or images, re-ranked, judged and without copies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mclip_fairseq.search.calibration import Calibration
from mclip_fairseq.search.engine import Index
from mclip_fairseq.search.query import (
    COPIES,
    DEPTH,
    Answer,
    search_images,
    search_texts,
    unknown_words,
    without_copies,
)


@dataclass(frozen=True)
class Question:
    """What `query` asks: texts, a text per language, or images.

    Attributes:
        texts: checked texts, or the names of the images.
        languages: of the texts, where `--language` or `--languages` names them; otherwise empty.
        images: decoded images; empty for texts.
    """

    texts: list[str]
    languages: list[str]
    images: list[Any]


def answer(
    index: Index,
    model: Any,
    question: Question,
    k: int,
    unique: bool,
    rerank: int = 0,
    calibration: Calibration | None = None,
) -> list[Answer]:
    """The k nearest images of each text or image.

    Args:
        index: what is searched.
        model: the dual encoder.
        question: texts or images.
        k: hits of each.
        unique: images with equal vectors count as one.
        rerank: how many of the nearest images of a text the model itself puts in order; 0 for none.
        calibration: says how well the hits of texts fit; None says nothing.
    """
    depth = max(k, min(COPIES * k, DEPTH)) if unique else k
    languages = question.languages or [""] * len(question.texts)
    fits: list[bool | None] = [None] * len(question.texts)
    if question.images:
        hits = search_images(index, model, question.images, depth)
        warnings = [""] * len(hits)
    else:
        searched = max(depth, rerank, calibration.depth(k) if calibration else 0)
        hits = search_texts(index, model, question.texts, searched, languages=question.languages)
        warnings = unknown_words(model, question.texts, question.languages)
        if calibration is not None:
            hits = [calibration.judge(index, each, code) for each, code in zip(hits, languages, strict=True)]
            fits = [calibration.fits(each) for each in hits]
        if rerank:
            from mclip_fairseq.search.reranking import Reranker

            hits = Reranker(index, model, rerank)(index, question.texts, hits)
        hits = [nearest[:depth] for nearest in hits]
    if unique:
        hits = [without_copies(index, nearest, k) for nearest in hits]
    return [Answer(*parts) for parts in zip(question.texts, hits, languages, warnings, fits, strict=True)]
