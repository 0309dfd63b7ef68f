"""Criterion `teacher_learning`: mean squared error to the teacher's text features (M-CLIP)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import FairseqDataclass

from mclip_fairseq.criterions.nonfinite import count_nonfinite_rows
from mclip_fairseq.criterions.terms import Outcome, TermsCriterion, log_ratio


@dataclass
class TeacherLearningCriterionConfig(FairseqDataclass):
    """The loss has no options."""


@register_criterion("teacher_learning", dataclass=TeacherLearningCriterionConfig)
class TeacherLearningCriterion(TermsCriterion):
    """MSE, mean over dimensions, and the cosine for the log.

    | batch entry | shape | needed |
    |---|---|---|
    | `net_input` | what the model reads, `teacher_text` included | always |
    | `nsentences`, `ntokens` | int | always |
    | `is_dummy` | bool | absent means False |

    The model returns `student` and `teacher_text`, (batch, teacher dim).
    """

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """The sum over captions of the mean squared error over dimensions."""
        out = model(**sample["net_input"])
        batch = self.batch(sample)
        student, teacher = out["student"].float(), out["teacher_text"].float()
        loss = F.mse_loss(student, teacher, reduction="sum") / teacher.shape[1]
        cosine = F.cosine_similarity(student, teacher).sum()
        if batch.dummy:
            loss, cosine = loss * 0.0, cosine * 0.0
        logged = {
            "loss": loss.detach(),
            "cosine": cosine.detach(),
            "ntokens": batch.tokens,
            "nsentences": batch.rows,
            "sample_size": batch.rows,
        }
        return Outcome(loss, batch.rows, logged, count_nonfinite_rows(student, teacher))

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the error and the cosine."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        log_ratio("cosine", logging_outputs, "cosine", "sample_size")
