"""Consistency over languages: how much the rank of the same item moves from language to language."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mclip_fairseq.storage.errors import UserError

STATISTICS = ("variance", "std")


def mean_rank_variance(ranks: Tensor | np.ndarray, statistic: str = "variance") -> float:
    """Mean over items of the spread of their ranks over languages (MRV; CCRK, KDD 2024).

    The paper names a variance, its released code takes the population standard deviation; both are here.

    Args:
        ranks: (languages, items) ranks of aligned items, for example ``RetrievalRanks.t2i`` of each language.
        statistic: "variance" or "std", of the population (no degrees of freedom taken off), over languages.

    Returns:
        The mean over items, in ranks squared ("variance") or ranks ("std"); 0 for a single language.

    Raises:
        UserError: when the statistic is unknown or ``ranks`` is no finite, non-empty matrix.
    """
    if statistic not in STATISTICS:
        raise UserError(f"Unknown rank statistic {statistic!r}: choose one of {', '.join(STATISTICS)}.")
    values = torch.as_tensor(ranks)
    if values.ndim != 2 or not values.numel():
        raise UserError(
            f"Ranks must be a matrix (languages, items) with at least one of each, got shape {tuple(values.shape)}."
        )
    if not values.isfinite().all():
        raise UserError("Ranks must be finite: every item needs a rank in every language.")
    variance = values.double().var(dim=0, correction=0)
    return (variance.sqrt() if statistic == "std" else variance).mean().item()
