"""Retrieval in many languages at once: a result per language, averages, and consistency over languages."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.evaluation.metrics.confidence import recall_intervals
from mclip_fairseq.evaluation.metrics.inputs import Features
from mclip_fairseq.evaluation.metrics.retrieval import RetrievalRanks, metrics_from_ranks, retrieval_ranks
from mclip_fairseq.evaluation.metrics.variance import STATISTICS, mean_rank_variance
from mclip_fairseq.storage.errors import UserError

Metrics = dict[str, float]
CURVE_AT = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
# Entries of a result that are counts, not percentages.
COUNTS = ("ties", "classes", "prompts", "photos")


def evaluate_languages(
    text: Mapping[str, Features],
    image: Features,
    text_to_image: Mapping[str, Tensor],
    protocol: str = "strict",
    captioned_only: bool = False,
    folds: Tensor | None = None,
) -> dict[str, Any]:
    """Evaluate each language against the same images.

    Args:
        text: language -> (T, D) caption features; T may differ.
        image: (I, D) image features.
        text_to_image: language -> (T,) int64 index into `image`.
        protocol: see `retrieval_ranks`.
        captioned_only: search only the images that this language's captions name; all I images otherwise.
        folds: (I,) int64, the fold of each image. Each fold is searched by itself, and recalls are averaged over folds.

    Returns:
        `results`: language -> metrics of `retrieval_metrics`; `confidence`: language -> metric -> 95 per cent interval;
        `average`: see `average_languages`; without folds `curve`: language -> `recall_curve`; and, for two or more
        languages whose captions name the same images line by line, `mean_rank_variance`: statistic -> direction ->
        value.

    Raises:
        UserError: as `retrieval_ranks`, or the two mappings name different languages or none.
    """
    if not text or text.keys() != text_to_image.keys():
        raise UserError(
            f"text features are given for {sorted(text)} and image indices for {sorted(text_to_image)}; both must name "
            "the same languages, at least one"
        )
    ranks: dict[str, list[RetrievalRanks]] = {}
    for language, features in text.items():
        images, own = gallery_of_captions(image, text_to_image[language], captioned_only)
        if folds is None:
            ranks[language] = [retrieval_ranks(features, images, own, protocol)]
        else:
            fold_of_image, _ = gallery_of_captions(folds, text_to_image[language], captioned_only)
            ranks[language] = [
                retrieval_ranks(*fold, protocol) for fold in split_into_folds(features, images, own, fold_of_image)
            ]
    # Ranks of the same item can only be compared where line n means the same item in every language.
    return summarise_ranks(ranks, aligned=folds is None and are_aligned(text_to_image))


def summarise_ranks(ranks: Mapping[str, Sequence[RetrievalRanks]], aligned: bool) -> dict[str, Any]:
    """Everything that is reported of the ranks of each language; see `evaluate_languages`.

    Args:
        ranks: language -> ranks of each fold; a benchmark without folds counts as one fold.
        aligned: whether query n is the same item in every language.
    """
    results = {
        language: _mean_over_folds([metrics_from_ranks(fold) for fold in of_folds])
        for language, of_folds in ranks.items()
    }
    report: dict[str, Any] = {
        "results": results,
        "confidence": {language: recall_intervals(of_folds) for language, of_folds in ranks.items()},
        "average": average_languages(results),
    }
    if all(len(of_folds) == 1 for of_folds in ranks.values()):
        whole = {language: of_folds[0] for language, of_folds in ranks.items()}
        report["curve"] = {language: recall_curve(values) for language, values in whole.items()}
        if len(ranks) > 1 and aligned:
            report["mean_rank_variance"] = _rank_variances(whole)
    return report


def recall_curve(ranks: RetrievalRanks) -> dict[str, list[float]]:
    """`k`: CURVE_AT; `t2i` and `i2t`: the recalls at them, in percent."""
    curve: dict[str, list[float]] = {"k": list(CURVE_AT)}
    for direction, values in (("t2i", ranks.t2i), ("i2t", ranks.i2t)):
        curve[direction] = [100 * values.lt(k).double().mean().item() for k in CURVE_AT]
    return curve


def split_into_folds(
    text: Features, image: Features, own: Tensor, folds: Tensor
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Captions, images and image indices of each fold.

    Args:
        text: (T, D).
        image: (I, D).
        own: (T,) int64 index into `image`.
        folds: (I,) int64 fold of each image.
    """
    text, image = torch.as_tensor(text), torch.as_tensor(image)
    for fold in folds.unique():
        images = folds.eq(fold)
        captions = images[own]
        row_in_fold = images.cumsum(0) - 1
        yield text[captions], image[images], row_in_fold[own[captions]]


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
        results: language -> metrics; counts, such as `ties`, are not averaged.

    Returns:
        `all`: over all languages; `without_en`: over all but "en", where "en" and another language exist.
    """
    averages = {"all": _mean(list(results.values()))}
    others = [metrics for language, metrics in results.items() if language != "en"]
    if 0 < len(others) < len(results):
        averages["without_en"] = _mean(others)
    return averages


def _mean(metrics: list[Metrics]) -> Metrics:
    return {key: sum(m[key] for m in metrics) / len(metrics) for key in metrics[0] if key not in COUNTS}


def _mean_over_folds(folds: list[Metrics]) -> Metrics:
    return _mean(folds) | {"ties": sum(fold["ties"] for fold in folds)}


def are_aligned(text_to_image: Mapping[str, Tensor]) -> bool:
    """Whether the captions of all languages name the same images line by line."""
    first, *others = text_to_image.values()
    return all(torch.equal(first, own) for own in others)


def _rank_variances(ranks: Mapping[str, RetrievalRanks]) -> dict[str, dict[str, float]]:
    t2i = torch.stack([values.t2i for values in ranks.values()])
    i2t = torch.stack([values.i2t for values in ranks.values()])
    return {
        statistic: {"t2i": mean_rank_variance(t2i, statistic), "i2t": mean_rank_variance(i2t, statistic)}
        for statistic in STATISTICS
    }
