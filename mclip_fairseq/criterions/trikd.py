"""Criterion `trikd`: image-text and text-text contrast (mCLIP, equations 4 to 6)."""

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from mclip_fairseq.criterions.terms import (
    Batch,
    LossArithmetic,
    Outcome,
    TermsCriterion,
    contrast_term,
    log_ratio,
    weighted_mean,
)
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
    trikd_arithmetic: LossArithmetic = field(
        default="sound",
        metadata={
            "help": "sound, or released: the logarithm of --text-text-scale as scale, sums over positives, images "
            "instead of missing teacher texts"
        },
    )


@register_criterion("trikd", dataclass=TriKDCriterionConfig)
class TriKDCriterion(TermsCriterion):
    """Triangle Cross-modal Knowledge Distillation: means over the pairs of all ranks.

    | batch entry | shape | needed |
    |---|---|---|
    | `net_input` | what the model reads | always |
    | `group` | (batch,) int64, equal for captions of one image | with `--positives image` |
    | `nsentences`, `ntokens` | int | always |
    | `is_dummy` | bool | absent means False |

    The model returns `text`, `image`, `teacher_text`, (batch, dim), L2-normalised, the last two or None, and `scale`.
    """

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

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """This rank's share of (loss x pairs of all ranks)."""
        out = model(**sample["net_input"])
        batch = Batch.of(sample, gather=self.training)
        text, image, teacher_text, scale = (out[name] for name in ("text", "image", "teacher_text", "scale"))
        # Captions in other languages have no teacher text; the released code then compares with the image twice.
        target = image if self.released and teacher_text is None else teacher_text
        contrast = functools.partial(
            contrast_term,
            batch,
            ids=sample["group"] if self.by_image else None,
            reduction="sum" if self.released else "mean",
        )
        hits = ("text_to_image_hits", "image_to_text_hits")
        terms = [
            contrast("image_text", self.image_text_weight, text, image, scale, hits=hits),
            contrast("text_text", self.text_text_weight, text, target, self.text_text_scale),
        ]
        return weighted_mean(
            batch,
            terms,
            anchor=text.sum(dtype=torch.float32) * 0.0 + scale * 0.0,
            features=[text, image, teacher_text],
            # In float16 a scale of 33 times 2,048 rows would be infinite, and so might be the sum of the features.
            logged={"scale": scale.detach().float() * batch.rows},
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
