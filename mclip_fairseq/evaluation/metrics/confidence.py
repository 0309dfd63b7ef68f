"""Confidence intervals of recalls by bootstrap over queries (percentile method; Efron and Tibshirani, 1993)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mclip_fairseq.evaluation.metrics.retrieval import RECALL_AT, RetrievalRanks

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
Interval = list[float]


def recall_intervals(
    folds: Sequence[RetrievalRanks], resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED
) -> dict[str, Interval]:
    """Percentile intervals of every recall and of their mean.

    Each resample draws the queries of each direction with replacement. A recall depends only on how many queries fall
    between two cut-offs, and in a resample these numbers are multinomial, so they are drawn directly.

    Args:
        folds: the ranks of one evaluation, or of its folds, whose recalls are averaged.
        resamples: number of resamples.
        level: share of the resamples inside the interval.
        seed: of the random generator.

    Returns:
        `t2i_R@1` ... `mean_recall` -> [low, high] in percent.
    """
    rng = np.random.default_rng(seed)
    recalls = [_resampled_recalls(ranks, resamples, rng) for ranks in folds]
    means = {key: np.mean([fold[key] for fold in recalls], axis=0) for key in recalls[0]}
    means["mean_recall"] = np.mean(list(means.values()), axis=0)
    return {key: interval(values, level) for key, values in means.items()}


def mean_interval(values: np.ndarray, resamples: int = RESAMPLES, level: float = LEVEL, seed: int = SEED) -> Interval:
    """Percentile interval of the mean of 0 and 1 values, such as hits, in percent."""
    share = float(np.mean(values))
    means = np.random.default_rng(seed).binomial(len(values), share, resamples) / len(values)
    return interval(100 * means, level)


def interval(resampled: np.ndarray, level: float = LEVEL) -> Interval:
    """The percentiles that leave the same share out on both sides."""
    tail = 50 * (1 - level)
    low, high = np.percentile(resampled, [tail, 100 - tail])
    return [float(low), float(high)]


def _resampled_recalls(ranks: RetrievalRanks, resamples: int, rng: np.random.Generator) -> Mapping[str, np.ndarray]:
    """(resamples,) percent of each recall."""
    recalls = {}
    for direction, values in (("t2i", ranks.t2i), ("i2t", ranks.i2t)):
        between = np.histogram(values.cpu().numpy(), bins=[0, *RECALL_AT, np.inf])[0]
        counts = rng.multinomial(len(values), between / len(values), size=resamples)
        for k, hits in zip(RECALL_AT, counts.cumsum(axis=1).T, strict=False):  # the last column holds all queries
            recalls[f"{direction}_R@{k}"] = 100 * hits / len(values)
    return recalls
