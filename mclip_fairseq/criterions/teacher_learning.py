"""Criterion `teacher_learning`: mean squared error to the teacher's text features (M-CLIP)."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from mclip_fairseq.criterions.logging import log_ratio


@dataclass
class TeacherLearningCriterionConfig(FairseqDataclass):
    """The loss has no options."""


@register_criterion("teacher_learning", dataclass=TeacherLearningCriterionConfig)
class TeacherLearningCriterion(FairseqCriterion):
    """MSE, mean over dimensions, and the cosine for the log."""

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss of one batch: the sum over captions of the mean squared error over dimensions."""
        out = model(**sample["net_input"])
        student, teacher = out["student"].float(), out["teacher_text"].float()
        loss = F.mse_loss(student, teacher, reduction="sum") / teacher.shape[1]
        rows = int(sample["nsentences"])
        logged = {
            "loss": loss.detach(),
            "cosine": F.cosine_similarity(student, teacher).sum().detach(),
            "ntokens": int(sample["ntokens"]),
            "nsentences": rows,
            "sample_size": rows,
        }
        return loss, rows, logged

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the error and the cosine."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        log_ratio("cosine", logging_outputs, "cosine", "sample_size")

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: all entries are sums."""
        return True
