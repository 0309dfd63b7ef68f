"""Criterion `trikd`: image-text and text-text contrast (mCLIP, equations 4 to 6)."""

import math
import re
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from mclip_fairseq.criterions.teacher_terms import (
    Relations,
    RelationsConfig,
    distance_term,
    log_relations,
    read_prefixes,
    unit_prefix,
)
from mclip_fairseq.criterions.terms import (
    Batch,
    LossArithmetic,
    Outcome,
    Term,
    TermsCriterion,
    contrast_term,
    log_ratio,
    weighted_mean,
)
from mclip_fairseq.storage.errors import UserError

# What the model returns in the joint space.
VECTORS = ("text", "image", "teacher_text", "image_bank", "translation")


@dataclass
class TriKDCriterionConfig(RelationsConfig):
    """Weights and scales of the terms."""

    image_text_weight: float = field(default=1.0, metadata={"help": "weight of the image-text term; 0 is off"})
    text_text_weight: float = field(default=0.1, metadata={"help": "weight of the text-text term; 0 is off"})
    text_text_scale: float = field(
        default=1 / 0.07, metadata={"help": "fixed scale of the text-text term (fine-tuning of the paper: 100)"}
    )
    text_text_loss: ChoiceEnum(["infonce", "mse", "cosine"]) = field(  # type: ignore[valid-type]
        default="infonce",
        metadata={
            "help": "the text-text term: contrast (as published), or a distance of unit vectors, mse |s - t|^2 or "
            "cosine 1 - s.t; a distance wants --fixed-target, because a trained target comes to meet it"
        },
    )
    positives: ChoiceEnum(["pair", "image"]) = field(  # type: ignore[valid-type]
        default="pair",
        metadata={"help": "pair: each caption has its own image; image: all captions of an image (fine-tuning)"},
    )
    matryoshka: str = field(
        default="",
        metadata={
            "help": "widths such as 64,128: the loss is the mean over the first 64, first 128 and all dimensions, so "
            "that stored vectors may be cut to these widths (Kusupati et al. 2022); empty: all dimensions alone"
        },
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
    With `--soft-label-weight` it also takes `image_bank`, (images, teacher dim), and returns `image_bank` in the joint
    space.
    """

    def __init__(self, task: Any, cfg: TriKDCriterionConfig) -> None:
        super().__init__(task)
        self.relations = Relations(task, cfg)
        if cfg.image_text_weight <= 0 and cfg.text_text_weight <= 0 and not self.relations.active:
            raise UserError("--image-text-weight and --text-text-weight are both 0: there is nothing to train")
        self.image_text_weight = cfg.image_text_weight
        self.text_text_weight = cfg.text_text_weight
        self.released = cfg.trikd_arithmetic == "released"
        self.text_text_loss = str(cfg.text_text_loss)
        if self.released and (self.text_text_loss != "infonce" or self.relations.active):
            raise UserError(
                "--trikd-arithmetic released has the two published terms alone; leave out --text-text-loss, "
                "--soft-label-weight, --structure-weight and --pair-weight, or say --trikd-arithmetic sound"
            )
        self.text_text_scale = math.log(cfg.text_text_scale) if self.released else cfg.text_text_scale
        self.by_image = cfg.positives == "image"
        self.prefixes = read_prefixes(cfg.matryoshka, getattr(getattr(task, "model", None), "dim", None))
        if self.released and self.prefixes:
            raise UserError("--trikd-arithmetic released has no prefixes; leave out --matryoshka")

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """This rank's share of (loss x pairs of all ranks)."""
        out = model(**sample["net_input"], **self.relations.inputs(sample["net_input"]))
        batch = self.batch(sample)
        text, scale = out["text"], out["scale"]
        terms = self.terms(batch, sample, out)
        for dim in self.prefixes:
            cut = {name: unit_prefix(out.get(name), dim) for name in VECTORS}
            of_prefix = self.terms(batch, sample, {**out, **cut})
            terms += [replace(term, name=f"{term.name}_{dim}", logged={}) for term in of_prefix]
        terms = [replace(term, weight=term.weight / (1 + len(self.prefixes))) for term in terms]
        return weighted_mean(
            batch,
            terms,
            anchor=text.sum(dtype=torch.float32) * 0.0 + scale * 0.0,
            features=[text, out["image"], out["teacher_text"]],
            # In float16 a scale of 33 times 2,048 rows would be infinite, and so might be the sum of the features.
            logged={"scale": scale.detach().float() * batch.rows},
        )

    def terms(self, batch: Batch, sample: dict[str, Any], out: dict[str, Any]) -> list[Term]:
        """All terms of the model's vectors, or of their prefixes."""
        text, image, teacher_text, scale = (out[name] for name in ("text", "image", "teacher_text", "scale"))
        hits = ("text_to_image_hits", "image_to_text_hits")
        return [
            self.contrast(batch, sample, "image_text", self.image_text_weight, text, image, scale, hits=hits),
            self.text_text(batch, sample, text, image, teacher_text),
            *self.relations.terms(batch, text, teacher_text, out.get("image_bank"), out.get("translation")),
        ]

    def contrast(self, batch: Batch, sample: dict[str, Any], name: str, weight: float, *args: Any, **kw: Any) -> Term:
        """A contrast with the positives and the reduction of the options; see `contrast_term`."""
        ids = sample["group"] if self.by_image else None
        reduction = "sum" if self.released else "mean"
        return contrast_term(batch, name, weight, *args, ids=ids, reduction=reduction, **kw)

    def text_text(
        self, batch: Batch, sample: dict[str, Any], text: Tensor, image: Tensor | None, teacher_text: Tensor | None
    ) -> Term:
        """The text-text term; see `outcome` for the arguments."""
        if self.text_text_loss != "infonce":
            return distance_term(batch, "text_text", self.text_text_weight, self.text_text_loss, text, teacher_text)
        # Captions in other languages have no teacher text; the released code then compares with the image twice.
        target = image if self.released and teacher_text is None else teacher_text
        return self.contrast(batch, sample, "text_text", self.text_text_weight, text, target, self.text_text_scale)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the losses, contrasts in nats, the scale, and recall at 1 within batches in percent."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        log_ratio("image_text_loss", logging_outputs, "image_text_loss", "sample_size")
        log_ratio("text_text_loss", logging_outputs, "text_text_loss", "sample_size")
        log_relations(logging_outputs)
        for name in sorted(set().union(*logging_outputs)):
            if re.fullmatch(r"\w+_\d+_loss", name):
                log_ratio(name, logging_outputs, name, "sample_size")
        log_ratio("scale", logging_outputs, "scale", "sample_size")
        log_ratio("t2i_R@1", logging_outputs, "text_to_image_hits", "image_text_rows", scale=100)
        log_ratio("i2t_R@1", logging_outputs, "image_to_text_hits", "image_text_rows", scale=100)
