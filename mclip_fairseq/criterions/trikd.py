"""Criterion `trikd`: image-text and text-text contrast (mCLIP, equations 4 to 6)."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from mclip_fairseq.criterions.logging import log_ratio, loss_arithmetic
from mclip_fairseq.losses import ContrastiveOutput, global_info_nce, sum_over_ranks
from mclip_fairseq.losses.finite import NONFINITE, count_nonfinite_rows
from mclip_fairseq.storage.errors import UserError


@dataclass
class TriKDCriterionConfig(FairseqDataclass):
    """Weights and scales of the two terms."""

    image_text_weight: float = field(default=1.0, metadata={"help": "weight of the image-text term; 0 is off"})
    text_text_weight: float = field(default=0.1, metadata={"help": "weight of the text-text term; 0 is off"})
    text_text_scale: float = field(
        default=1 / 0.07, metadata={"help": "fixed scale of the text-text term (fine-tuning of the paper: 100)"}
    )
    positives: ChoiceEnum(["pair", "image"]) = field(  # type: ignore[valid-type]
        default="pair",
        metadata={"help": "pair: each caption has its own image; image: all captions of an image (fine-tuning)"},
    )
    trikd_arithmetic: loss_arithmetic = field(
        default="sound",
        metadata={
            "help": "sound, or released: the logarithm of --text-text-scale as scale, sums over positives, images in "
            "place of missing teacher texts"
        },
    )


@register_criterion("trikd", dataclass=TriKDCriterionConfig)
class TriKDCriterion(FairseqCriterion):
    """Triangle Cross-modal Knowledge Distillation: means over the pairs of all ranks."""

    def __init__(
        self,
        task: Any,
        image_text_weight: float,
        text_text_weight: float,
        text_text_scale: float,
        positives: str,
        trikd_arithmetic: str,
    ) -> None:
        super().__init__(task)
        if image_text_weight <= 0 and text_text_weight <= 0:
            raise UserError("--image-text-weight and --text-text-weight are both 0: there is nothing to train")
        self.image_text_weight = image_text_weight
        self.text_text_weight = text_text_weight
        self.released = trikd_arithmetic == "released"
        self.text_text_scale = math.log(text_text_scale) if self.released else text_text_scale
        self.by_image = positives == "image"

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss of one batch.

        Args:
            model: `MCLIPModel`, possibly wrapped for distribution.
            sample: a batch of `CaptionDataset`.
            reduce: unused; fairseq passes it.

        Returns:
            this rank's share of (loss x pairs of all ranks), its number of pairs, and what is logged.
        """
        out = model(**sample["net_input"])
        dummy = bool(sample.get("is_dummy", False))
        rows = 0 if dummy else int(sample["nsentences"])
        text, groups = out["text"], sample["group"] if self.by_image else None
        teacher_text = out["image"] if self.released and out["teacher_text"] is None else out["teacher_text"]
        zero = text.sum() * 0.0 + out["scale"] * 0.0
        image_text = self.term(self.image_text_weight, text, out["image"], out["scale"], groups, dummy)
        text_text = self.term(self.text_text_weight, text, teacher_text, self.text_text_scale, groups, dummy)
        total = torch.tensor([float(rows)], device=text.device)
        total = sum_over_ranks(total) if self.training else total
        loss = zero + total.squeeze() * (
            self.image_text_weight * image_text.loss + self.text_text_weight * text_text.loss
        )
        logged = {
            "loss": loss.detach(),
            "image_text_loss": (image_text.loss * total.squeeze()).detach(),
            "text_text_loss": (text_text.loss * total.squeeze()).detach(),
            "scale": out["scale"].detach() * rows,
            "text_to_image_hits": image_text.hits_xy,
            "image_to_text_hits": image_text.hits_yx,
            "image_text_rows": image_text.rows,
            "text_text_rows": text_text.rows,
            "ntokens": 0 if dummy else int(sample["ntokens"]),
            "nsentences": rows,
            "sample_size": rows,
            NONFINITE: count_nonfinite_rows(text, out["image"], out["teacher_text"]),
        }
        return loss, rows, logged

    def term(
        self,
        weight: float,
        text: Tensor,
        other: Tensor | None,
        scale: Tensor | float,
        groups: Tensor | None,
        dummy: bool,
    ) -> ContrastiveOutput:
        """One contrast over all ranks; a rank with nothing to compare still takes part in the gathering."""
        rows = 0 if dummy or weight == 0 or other is None else len(text)
        other = text if other is None else other
        return global_info_nce(
            text[:rows],
            other[:rows],
            scale,
            ids=None if groups is None else groups[:rows],
            reduction="sum" if self.released else "mean",
            gather=self.training and weight != 0,
        )

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log both losses in nats, the scale, and recall at 1 within batches in percent."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        log_ratio("image_text_loss", logging_outputs, "image_text_loss", "sample_size")
        log_ratio("text_text_loss", logging_outputs, "text_text_loss", "sample_size")
        log_ratio("scale", logging_outputs, "scale", "sample_size")
        log_ratio("t2i_R@1", logging_outputs, "text_to_image_hits", "image_text_rows", scale=100)
        log_ratio("i2t_R@1", logging_outputs, "image_to_text_hits", "image_text_rows", scale=100)

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: all entries are sums."""
        return True
