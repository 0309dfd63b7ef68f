"""Base of the criterions: a subclass lists terms and weights, everything about ranks and logging is here.

The terms of a batch are means over all ranks' rows or sums over this rank's. fairseq adds the losses of all ranks, and
divides by the sum of their sample sizes, so a mean counts as (this rank's share of the mean) x (sample size of all
ranks).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from fairseq.criterions import FairseqCriterion
from fairseq.dataclass import ChoiceEnum
from fairseq.logging import metrics
from torch import Tensor

from mclip_fairseq.criterions.nonfinite import count_nonfinite_rows
from mclip_fairseq.losses import global_info_nce, sum_over_ranks

LossArithmetic = ChoiceEnum(["sound", "released"])
Log = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """What the terms need to know of a batch.

    Attributes:
        rows: samples that count; 0 in a dummy batch.
        tokens: their tokens; 0 in a dummy batch.
        dummy: whether the batch only keeps this rank in step with the others.
        gather: whether the terms look at all ranks: in training, but not in validation.
        block_rows: rows of logits that exist at once, see `global_info_nce`.
    """

    rows: int
    tokens: int
    dummy: bool
    gather: bool
    block_rows: int | None = None

    @classmethod
    def of(cls, sample: dict[str, Any], gather: bool, block_rows: int | None = None) -> Batch:
        """The batch behind a sample."""
        dummy = bool(sample.get("is_dummy", False))
        return cls(
            rows=0 if dummy else int(sample["nsentences"]),
            tokens=0 if dummy else int(sample["ntokens"]),
            dummy=dummy,
            gather=gather,
            block_rows=block_rows,
        )

    def total(self, *counts: float, like: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """Sums of some of this rank's counts over all ranks, on the device of `like`."""
        own = torch.stack([like.new_full((), count, dtype=dtype) for count in counts])
        return sum_over_ranks(own) if self.gather else own


@dataclass(frozen=True)
class Term:
    """One term of a loss.

    Attributes:
        name: logged as `NAME_loss`.
        weight: factor in the loss.
        share: 0-d, this rank's share of the term's mean over all ranks; the shares of all ranks add up to it.
        logged: further sums to log.
    """

    name: str
    weight: float
    share: Tensor
    logged: Log = field(default_factory=dict)


class Outcome(NamedTuple):
    """A criterion's answer.

    Attributes:
        loss: 0-d, summed over the rank's samples.
        sample_size: what fairseq divides by.
        logged: sums for the log.
        bad_rows: this rank's rows whose features are not finite, before any gathering.
    """

    loss: Tensor
    sample_size: int
    logged: Log
    bad_rows: Tensor


class TermsCriterion(FairseqCriterion):
    """A loss made of weighted terms."""

    def batch(self, sample: dict[str, Any]) -> Batch:
        """The batch behind a sample, with the options of the task."""
        block_rows = getattr(getattr(self.task, "cfg", None), "contrast_block_rows", -1)
        return Batch.of(sample, self.training, block_rows if block_rows >= 0 else None)

    @abstractmethod
    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """The loss of one batch; the task asks this, to find batches that are not finite."""

    def forward(self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True) -> tuple[Tensor, int, Log]:
        """The loss of one batch, as fairseq asks for it.

        Args:
            model: possibly wrapped for distribution.
            sample: a batch with the entries that the class lists.
            reduce: unused; fairseq passes it.

        Returns:
            the summed loss, the sample size, and what is logged.
        """
        return self.outcome(model, sample)[:3]

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: all entries are sums."""
        return True


def contrast_term(
    batch: Batch,
    name: str,
    weight: float,
    x: Tensor,
    y: Tensor | None,
    scale: Tensor | float,
    *,
    ids: Tensor | None = None,
    reduction: str = "mean",
    direction: str = "both",
    hits: tuple[str, str] | None = None,
) -> Term:
    """InfoNCE over the rows of all ranks; a rank with nothing to compare still takes part in the gathering.

    Args:
        batch: of this rank; the rows of a dummy batch are not negatives of any other.
        name: of the term.
        weight: its factor; 0 switches it off.
        x: (batch, dim), L2-normalised.
        y: (batch, dim), L2-normalised; None where this batch has no such rows.
        scale: factor of the cosine.
        ids: (batch,) int64, equal for positives; None: each row is its own.
        reduction: over the positives of a row.
        direction: `both`, or `xy` for x -> y alone.
        hits: names under which correct answers x -> y and y -> x are logged.
    """
    # No early return: every rank must meet the same collectives, in the forward and in the backward pass.
    rows = 0 if batch.dummy or weight == 0 or y is None else len(x)
    y = x if y is None else y
    out = global_info_nce(
        x[:rows],
        y[:rows],
        scale,
        ids=None if ids is None else ids[:rows],
        reduction=reduction,
        direction=direction,
        gather=batch.gather and weight != 0,
        block_rows=batch.block_rows,
    )
    logged: Log = {f"{name}_rows": out.rows}
    if hits is not None:
        logged |= {hits[0]: out.hits_xy, hits[1]: out.hits_yx}
    return Term(name, weight, out.loss, logged)


def weighted_mean(
    batch: Batch, terms: Sequence[Term], anchor: Tensor, features: Sequence[Tensor | None], logged: Log
) -> Outcome:
    """The loss whose sample size is the number of rows: the weighted sum of means over all ranks' rows.

    Args:
        batch: of this rank.
        terms: of the loss.
        anchor: 0-d, zero; it keeps what no term uses in the graph, so that every rank's backward meets the same
            collectives.
        features: (batch, dim) matrices to look at for values that are not finite.
        logged: further sums to log.
    """
    total = batch.total(float(batch.rows), like=anchor).squeeze()
    mean = sum((term.weight * term.share for term in terms[1:]), terms[0].weight * terms[0].share)
    loss = anchor + total * mean
    counts = {"ntokens": batch.tokens, "nsentences": batch.rows, "sample_size": batch.rows}
    log: Log = {"loss": loss.detach(), **logged, **counts}
    for term in terms:
        log |= {f"{term.name}_loss": (term.share * total).detach(), **term.logged}
    return Outcome(loss, batch.rows, log, count_nonfinite_rows(*features))


def log_ratio(
    name: str, outputs: Sequence[Log], above: str, below: str, divisor: float = 1.0, scale: float = 1.0
) -> None:
    """Log the sum of one entry over the sum of another, weighted by the latter, to six decimals; percent to three.

    Args:
        name: under which it is logged.
        outputs: one dict per batch (already summed over ranks).
        above: entry of the numerator.
        below: entry of the denominator; the metric is left out while it is 0.
        divisor: divides the ratio (log 2 for bits).
        scale: multiplies it (100 for percent).
    """
    total = float(sum(output.get(below, 0) for output in outputs))
    if total > 0:
        value = float(sum(output.get(above, 0) for output in outputs)) / total / divisor * scale
        # fairseq compares checkpoints by the rounded value, and errors of small vectors differ in late digits alone.
        metrics.log_scalar(name, value, total, round=6 if scale == 1 else 3)
