"""Consistency over languages: how much the rank of the same item moves from language to language."""

from __future__ import annotations

from mclip_fairseq.evaluation.metrics.inputs import Features, check_choice, rank_matrix

STATISTICS = ("variance", "std")


def mean_rank_variance(ranks: Features, statistic: str = "variance") -> float:
    """Mean over N items of the spread of their ranks over K languages (MRV_K; CCRK, KDD 2024).

    The paper's formula is the variance, `1/(K N) sum_n sum_k (rank_kn - mean_k rank_kn)^2`; its released code takes the
    standard deviation of each item before it averages. Both divide by K, not by K - 1.

    Args:
        ranks: (languages, items) ranks of aligned items, for example `RetrievalRanks.t2i` of each language.
        statistic: "variance" or "std".

    Returns:
        the mean over items, in ranks squared ("variance") or ranks ("std"); 0 for a single language.

    Raises:
        UserError: the statistic is unknown, or `ranks` is not a finite, non-empty matrix.
    """
    check_choice("rank statistic", statistic, STATISTICS)
    variance = rank_matrix(ranks).var(dim=0, correction=0)
    return (variance.sqrt() if statistic == "std" else variance).mean().item()
