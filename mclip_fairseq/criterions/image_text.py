"""Criterion `image_text`: contrast of images and their captions with the model's own scale (CLIP, AltCLIP, MLA)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from mclip_fairseq.criterions.terms import Batch, Outcome, TermsCriterion, contrast_term, log_ratio, weighted_mean


@dataclass
class ImageTextCriterionConfig(FairseqDataclass):
    """Which captions belong to an image, and the direction of the contrast."""

    positives: ChoiceEnum(["pair", "image"]) = field(  # type: ignore[valid-type]
        default="pair", metadata={"help": "pair: each caption has its own image; image: all captions of an image"}
    )
    contrast_direction: ChoiceEnum(["both", "released"]) = field(  # type: ignore[valid-type]
        default="both", metadata={"help": "both: text -> image and image -> text; released: text -> image alone"}
    )


@register_criterion("image_text", dataclass=ImageTextCriterionConfig)
class ImageTextCriterion(TermsCriterion):
    """InfoNCE between texts and images of all ranks.

    | batch entry | shape | needed |
    |---|---|---|
    | `net_input` | what the model reads, images included | always |
    | `group` | (batch,) int64, equal for captions of one image | with `--positives image` |
    | `nsentences`, `ntokens` | int | always |
    | `is_dummy` | bool | absent means False |

    The model returns `text` and `image`, (batch, dim), L2-normalised, and `scale`, 0-d.
    """

    def __init__(self, task: Any, positives: str, contrast_direction: str) -> None:
        super().__init__(task)
        self.by_image = positives == "image"
        self.direction = "both" if contrast_direction == "both" else "xy"

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """This rank's share of (loss x pairs of all ranks)."""
        out = model(**sample["net_input"])
        batch = Batch.of(sample, gather=self.training)
        text, image, scale = out["text"], out["image"], out["scale"]
        term = contrast_term(
            batch,
            "image_text",
            1.0,
            text,
            image,
            scale,
            ids=sample["group"] if self.by_image else None,
            direction=self.direction,
            hits=("text_to_image_hits", "image_to_text_hits"),
        )
        anchor = text.sum() * 0.0 + image.sum() * 0.0 + scale * 0.0
        return weighted_mean(batch, [term], anchor, [text, image], {"scale": scale.detach() * batch.rows})

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss in nats, the scale, and recall at 1 within batches in percent."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        log_ratio("scale", logging_outputs, "scale", "sample_size")
        log_ratio("t2i_R@1", logging_outputs, "text_to_image_hits", "image_text_rows", scale=100)
        log_ratio("i2t_R@1", logging_outputs, "image_to_text_hits", "image_text_rows", scale=100)
