"""Sentence retrieval between translations (Tatoeba; Artetxe and Schwenk, TACL 2019)."""

from __future__ import annotations

import torch

from mclip_fairseq.evaluation.metrics.confidence import mean_interval
from mclip_fairseq.evaluation.metrics.inputs import Features
from mclip_fairseq.evaluation.metrics.retrieval import retrieval_ranks
from mclip_fairseq.storage.errors import UserError


def bitext_accuracy(source: Features, target: Features) -> tuple[dict[str, float], list[float]]:
    """Accuracy of the nearest neighbour by cosine, in percent; a tie counts as an error.

    Args:
        source: (n, D) sentences.
        target: (n, D) their translations, in the same order.

    Returns:
        `into` (a source finds its target), `out_of` (a target finds its source), their mean `accuracy`, and `ties`;
        and the 95 per cent interval of the mean.

    Raises:
        UserError: as `retrieval_ranks`, or the sides differ in length.
    """
    if len(source) != len(target):
        raise UserError(f"{len(source)} sentences with {len(target)} translations; give one translation per sentence")
    # Like captions with one image each: both directions are plain nearest-neighbour searches.
    ranks = retrieval_ranks(source, target, torch.arange(len(source)))
    into, out_of = ranks.t2i.eq(0), ranks.i2t.eq(0)
    accuracies = {"into": 100 * into.double().mean().item(), "out_of": 100 * out_of.double().mean().item()}
    accuracies["accuracy"] = (accuracies["into"] + accuracies["out_of"]) / 2
    return accuracies | {"ties": ranks.ties}, mean_interval(torch.cat([into, out_of]).cpu().numpy())
