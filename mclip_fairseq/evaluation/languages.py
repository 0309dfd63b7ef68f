"""Retrieval in many languages at once: a result per language, averages, and consistency over languages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.evaluation.retrieval import Features, RetrievalRanks, metrics_from_ranks, retrieval_ranks
from mclip_fairseq.evaluation.variance import STATISTICS, mean_rank_variance

Metrics = dict[str, float]


def evaluate_languages(
    text: Mapping[str, Features],
    image: Features,
    text_to_image: Mapping[str, Tensor],
    protocol: str = "strict",
    captioned_only: bool = False,
) -> dict[str, Any]:
    """Evaluate each language against the same images.

    Args:
        text: language -> (T, D) caption features; T may differ.
        image: (I, D) image features.
        text_to_image: language -> (T,) int64 index into ``image``.
        protocol: see ``retrieval_ranks``.
        captioned_only: search only the images that this language's captions name; all I images otherwise.

    Returns:
        ``results``: language -> metrics of ``retrieval_metrics``; ``average``: see ``average_languages``;
        and, for two or more languages whose captions name the same images line by line,
        ``mean_rank_variance``: statistic -> direction -> value.

    Raises:
        ValueError: as ``retrieval_ranks``, or when the two mappings name different languages or none.
    """
    if not text or text.keys() != text_to_image.keys():
        raise ValueError(
            f"Text features are given for {sorted(text)} and image indices for {sorted(text_to_image)}: "
            "both must name the same languages, at least one."
        )
    ranks = {}
    for language, features in text.items():
        images, own = gallery_of_captions(image, text_to_image[language], captioned_only)
        ranks[language] = retrieval_ranks(features, images, own, protocol)
    results = {language: metrics_from_ranks(values) for language, values in ranks.items()}
    report: dict[str, Any] = {"results": results, "average": average_languages(results)}
    if len(ranks) > 1 and _aligned(text_to_image):
        report["mean_rank_variance"] = _rank_variances(ranks)
    return report


def gallery_of_captions(image: Features, own: Tensor, captioned_only: bool) -> tuple[Tensor, Tensor]:
    """The images that one language is searched in, and its image indices into them."""
    image = torch.as_tensor(image)
    if not captioned_only:
        return image, own
    captioned, own = own.unique(return_inverse=True)
    return image[captioned.to(image.device)], own


def average_languages(results: Mapping[str, Metrics]) -> dict[str, Metrics]:
    """Plain means over languages, each language with the same weight.

    Args:
        results: language -> metrics; ``ties`` is a count and not averaged.

    Returns:
        ``all``: over all languages; ``without_en``: over all but "en", where there is "en" and another
        language.
    """
    averages = {"all": _mean(list(results.values()))}
    others = [metrics for language, metrics in results.items() if language != "en"]
    if 0 < len(others) < len(results):
        averages["without_en"] = _mean(others)
    return averages


def _mean(metrics: list[Metrics]) -> Metrics:
    return {key: sum(m[key] for m in metrics) / len(metrics) for key in metrics[0] if key != "ties"}


def _aligned(text_to_image: Mapping[str, Tensor]) -> bool:
    first, *others = text_to_image.values()
    return all(torch.equal(first, own) for own in others)


def _rank_variances(ranks: Mapping[str, RetrievalRanks]) -> dict[str, dict[str, float]]:
    t2i = torch.stack([values.t2i for values in ranks.values()])
    i2t = torch.stack([values.i2t for values in ranks.values()])
    return {
        statistic: {"t2i": mean_rank_variance(t2i, statistic), "i2t": mean_rank_variance(i2t, statistic)}
        for statistic in STATISTICS
    }
