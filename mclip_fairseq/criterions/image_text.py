"""Criterion `image_text`: contrast of images and their captions with the model's own scale (CLIP, AltCLIP, MLA)."""

from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass

from mclip_fairseq.criterions.terms import (
    Batch,
    Outcome,
    Term,
    TermsCriterion,
    contrast_term,
    log_ratio,
    weighted_mean,
)
from mclip_fairseq.losses import global_distillation_loss
from mclip_fairseq.storage.errors import UserError


@dataclass
class ImageTextCriterionConfig(FairseqDataclass):
    """Which captions belong to an image, and the weights of the contrast and of the distance."""

    positives: ChoiceEnum(["pair", "image"]) = field(  # type: ignore[valid-type]
        default="pair", metadata={"help": "pair: each caption has its own image; image: all captions of an image"}
    )
    contrast_direction: ChoiceEnum(["both", "released"]) = field(  # type: ignore[valid-type]
        default="both", metadata={"help": "both: text -> image and image -> text; released: text -> image alone"}
    )
    image_text_weight: float = field(default=1.0, metadata={"help": "weight of the contrast; 0 is off"})
    image_mse_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the mean squared error between texts and their images, neither normalised (mla; "
            "itm_mse); 0 is off"
        },
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

    The model returns `text` and `image`, (batch, dim), L2-normalised, and `scale`, 0-d; with `--image-mse-weight` also
    `student` and `image_features`, (batch, dim), as they are.
    """

    def __init__(
        self,
        task: Any,
        positives: str,
        contrast_direction: str,
        image_text_weight: float = 1.0,
        image_mse_weight: float = 0.0,
    ) -> None:
        super().__init__(task)
        if min(image_text_weight, image_mse_weight) < 0 or not image_text_weight + image_mse_weight:
            raise UserError("--image-text-weight and --image-mse-weight must not be negative, and one must be above 0")
        self.weight, self.mse_weight = image_text_weight, image_mse_weight
        self.by_image = positives == "image"
        self.direction = "both" if contrast_direction == "both" else "xy"

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """This rank's share of (loss x pairs of all ranks)."""
        out = model(**sample["net_input"])
        batch = self.batch(sample)
        text, image, scale = out["text"], out["image"], out["scale"]
        term = contrast_term(
            batch,
            "image_text",
            self.weight,
            text,
            image,
            scale,
            ids=sample["group"] if self.by_image else None,
            direction=self.direction,
            hits=("text_to_image_hits", "image_to_text_hits"),
        )
        anchor = text.sum() * 0.0 + image.sum() * 0.0 + scale * 0.0
        terms = [term, self.distance(batch, out)] if self.mse_weight else [term]
        return weighted_mean(batch, terms, anchor, [text, image], {"scale": scale.detach() * batch.rows})

    def distance(self, batch: Batch, out: dict[str, Any]) -> Term:
        """Mean squared error between texts and images, over the pairs of all ranks and the dimensions.

        Raises:
            UserError: the model gives normalised features alone.
        """
        if out.get("image_features") is None or out.get("student") is None:
            raise UserError("--image-mse-weight needs features that are not normalised; it is for the model mla")
        rows = batch.rows
        text, image = out["student"][:rows].float(), out["image_features"][:rows].float()
        share = global_distillation_loss(text, image, "mse", gather=batch.gather)
        return Term("image_mse", self.mse_weight, share)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss in nats, the scale, and recall at 1 within batches in percent."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        if any("image_mse_loss" in output for output in logging_outputs):
            log_ratio("image_mse_loss", logging_outputs, "image_mse_loss", "sample_size")
        log_ratio("scale", logging_outputs, "scale", "sample_size")
        log_ratio("t2i_R@1", logging_outputs, "text_to_image_hits", "image_text_rows", scale=100)
        log_ratio("i2t_R@1", logging_outputs, "image_to_text_hits", "image_text_rows", scale=100)
