"""Criterion `contrastive_tension`: two encoders agree on one sentence, and disagree on two (Carlsson et al., 2021)."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from mclip_fairseq.criterions.terms import (
    Outcome,
    Term,
    TermsCriterion,
    contrast_term,
    log_ratio,
    weighted_mean,
)
from mclip_fairseq.losses.tension import global_contrastive_tension_loss


@dataclass
class ContrastiveTensionCriterionConfig(FairseqDataclass):
    """Where the negatives come from."""

    negatives: ChoiceEnum(["sampled", "in_batch"]) = field(  # type: ignore[valid-type]
        default="sampled",
        metadata={
            "help": "sampled: binary cross entropy of dot products over the groups of the task; in_batch: InfoNCE over "
            "the batch with a learned scale, with --group-negatives 0 of the task"
        },
    )
    tension_reduction: ChoiceEnum(["mean", "sum"]) = field(  # type: ignore[valid-type]
        default="mean", metadata={"help": "over the pairs of a batch: mean (authors) or sum (sentence-transformers)"}
    )


@register_criterion("contrastive_tension", dataclass=ContrastiveTensionCriterionConfig)
class ContrastiveTensionCriterion(TermsCriterion):
    """The loss over the pairs of all ranks.

    | batch entry | shape | needed |
    |---|---|---|
    | `net_input` | what the model reads | always |
    | `labels` | (pairs,) float32, 1 for one sentence in both encoders | with `--negatives sampled` |
    | `nsentences` (pairs), `ntokens` | int | always |
    | `is_dummy` | bool | absent means False |

    The model returns `first` and `second`, (pairs, dim), not normalised, and `scale`, 0-d.
    """

    def __init__(self, task: Any, negatives: str, tension_reduction: str) -> None:
        super().__init__(task)
        self.in_batch = negatives == "in_batch"
        self.reduction = str(tension_reduction)

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """This rank's share of (loss x pairs of all ranks)."""
        out = model(**sample["net_input"])
        batch = self.batch(sample)
        first, second, scale = out["first"].float(), out["second"].float(), out["scale"]
        anchor = first.sum() * 0.0 + second.sum() * 0.0 + scale * 0.0
        logged: dict[str, Any] = {"scale": scale.detach() * batch.rows}
        if self.in_batch:
            one, other = F.normalize(first, dim=1), F.normalize(second, dim=1)
            term = contrast_term(batch, "tension", 1.0, one, other, scale, hits=("first_hits", "second_hits"))
        else:
            rows = 0 if batch.dummy else len(first)
            labels: Tensor = sample["labels"][:rows]
            share = global_contrastive_tension_loss(
                first[:rows], second[:rows], labels, self.reduction, gather=batch.gather
            )
            term = Term("tension", 1.0, share)
            with torch.no_grad():
                correct = ((first[:rows] * second[:rows]).sum(1) > 0) == (labels > 0)
            logged["correct"] = correct.sum()
        return weighted_mean(batch, [term], anchor, [first, second], logged)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss, and the percentage of pairs that are classified correctly."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        present = set().union(*logging_outputs)
        if "correct" in present:
            log_ratio("accuracy", logging_outputs, "correct", "sample_size", scale=100)
        else:
            log_ratio("scale", logging_outputs, "scale", "sample_size")
            log_ratio("accuracy", logging_outputs, "first_hits", "tension_rows", scale=100)
