"""Semantic textual similarity: correlation of cosines with human scores (STS; Cer et al., 2017)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from mclip_fairseq.evaluation.metrics.confidence import RESAMPLES, SEED, Interval, interval
from mclip_fairseq.evaluation.metrics.inputs import Features
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.extras import import_extra

# The tasks that SentEval averages -> how many tables of `preprocess/sts.py` each has.
SENTEVAL = {"sts12": 5, "sts13": 3, "sts14": 6, "sts15": 5, "sts16": 5, "stsb": 1, "sick": 1}
SENTEVAL_TABLE = re.compile(r"sts1[2-6]\.test\..+|(stsb|sick)\.test\.en")


def similarity_correlations(
    first: Features, second: Features, scores: Sequence[float]
) -> tuple[dict[str, float], dict[str, Interval]]:
    """Pearson's and Spearman's correlation of the cosine with the scores, times 100.

    Args:
        first: (n, D) sentences.
        second: (n, D) the other sentence of each pair.
        scores: (n,) human judgements.

    Returns:
        `pearson` and `spearman` (ties share their mean rank); and their 95 per cent intervals by bootstrap over pairs.

    Raises:
        UserError: all scores or all cosines are equal, so the correlation is undefined; or scipy is missing.
    """
    rankdata = import_extra("scipy.stats", "evaluate").rankdata
    cosine = F.cosine_similarity(torch.as_tensor(first).double(), torch.as_tensor(second).double()).cpu().numpy()
    gold = np.asarray(scores, dtype=np.float64)
    if np.ptp(gold) == 0 or np.ptp(cosine) == 0:
        raise UserError(
            "all scores or all cosines are equal, so the correlation is undefined; check the scores, then the model"
        )
    # Spearman's correlation is Pearson's of the ranks.
    correlations = {"pearson": _pearson(cosine, gold), "spearman": _pearson(rankdata(cosine), rankdata(gold))}
    rows = np.random.default_rng(SEED).integers(0, len(gold), (RESAMPLES, len(gold)))
    ranks = [rankdata(values[rows], axis=1) for values in (cosine, gold)]
    resampled = {"pearson": _pearson(cosine[rows], gold[rows]), "spearman": _pearson(*ranks)}
    # A resample of few pairs may repeat one pair only; its correlation is undefined, and it is ignored.
    intervals = {name: interval(values[np.isfinite(values)]) for name, values in resampled.items()}
    return {name: float(value) for name, value in correlations.items()}, intervals


def average_sets(results: Mapping[str, Mapping[str, float]], pairs: Mapping[str, int]) -> dict[str, dict[str, float]]:
    """Averages over the English test sets of SentEval: STS 2012 to 2016, STS-B and SICK-R.

    Args:
        results: table, such as `sts12.test.MSRpar` -> correlations; other languages and splits count in no average.
        pairs: table -> number of pairs.

    Returns:
        for each year, `stsYY mean`, each table with the same weight, and `stsYY wmean`, weighted by pairs; then `mean`
        and `wmean` of these over the years, STS-B and SICK-R, each with the same weight.
    """
    averages: dict[str, dict[str, float]] = {}
    totals: dict[str, list[dict[str, float]]] = {"mean": [], "wmean": []}
    tasks = senteval_tasks(results)
    for task, tables in tasks.items():
        for kind, weights in (("mean", [1] * len(tables)), ("wmean", [pairs[table] for table in tables])):
            average = {
                name: float(np.average([results[table][name] for table in tables], weights=weights))
                for name in results[tables[0]]
            }
            totals[kind].append(average)
            if len(tables) > 1:
                averages[f"{task} {kind}"] = average
    if averages and len(tasks) > 1:
        for kind, values in totals.items():
            averages[kind] = {name: float(np.mean([value[name] for value in values])) for name in values[0]}
    return averages


def senteval_tasks(tables: Iterable[str]) -> dict[str, list[str]]:
    """The tasks of SentEval, such as `sts12`, with those of the tables that belong to them."""
    tasks: dict[str, list[str]] = {}
    for table in filter(SENTEVAL_TABLE.fullmatch, tables):
        tasks.setdefault(table.split(".")[0], []).append(table)
    return tasks


def _pearson(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Times 100, along the last dimension; not a number where one side is constant."""
    x, y = x - x.mean(-1, keepdims=True), y - y.mean(-1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return 100 * (x * y).sum(-1) / np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
