"""Criterion `mte`: label-smoothed translation loss plus sentence contrast (mCLIP, section 3.1)."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from mclip_fairseq.criterions.nonfinite import count_nonfinite_rows
from mclip_fairseq.criterions.terms import (
    Batch,
    Log,
    LossArithmetic,
    Outcome,
    TermsCriterion,
    contrast_term,
    log_ratio,
)
from mclip_fairseq.losses import chunked_linear_label_smoothed_nll
from mclip_fairseq.storage.errors import UserError


@dataclass
class MTECriterionConfig(FairseqDataclass):
    """Weights of the two terms."""

    label_smoothing: float = field(default=0.1, metadata={"help": "mass moved from the gold token to all tokens"})
    translation_weight: float = field(
        default=1.0, metadata={"help": "weight of the translation loss; 0 skips the decoder"}
    )
    contrastive_weight: float = field(
        default=0.0, metadata={"help": "weight of the contrastive loss per token (stage 2 of the paper: 2.0); 0 is off"}
    )
    translation_gradient: ChoiceEnum(["fused", "recomputed"]) = field(  # type: ignore[valid-type]
        default="fused",
        metadata={
            "help": "fused: made in the forward pass, one product less where the embeddings are frozen; recomputed: "
            "logits are computed again in the backward pass, as version 0.2 did; equal but for rounding"
        },
    )
    contrastive_temperature: float = field(default=0.1, metadata={"help": "divides the cosine"})
    mte_arithmetic: LossArithmetic = field(
        default="sound",
        metadata={
            "help": "sound, or released: contrastive weight divided by the batch's sentences, smoothing over all "
            "entries, source pooled after the language projection"
        },
    )


@register_criterion("mte", dataclass=MTECriterionConfig)
class MTECriterion(TermsCriterion):
    """Loss of the translation model; all sums are over target tokens, so that fairseq's normalisation holds.

    | batch entry | shape | needed |
    |---|---|---|
    | `net_input.src_tokens`, `src_lengths`, `prev_output_tokens` | as fairseq's translation task | always |
    | `net_input.tgt_lang_id` | (batch,) int64, the language to translate into | always |
    | `target` | (batch, length) int64, ends with `</s>`, padded on the right | always |
    | `ntokens`, `nsentences` | int | always |
    | `is_dummy` | bool | absent means False |
    """

    def __init__(
        self,
        task: Any,
        label_smoothing: float,
        translation_weight: float,
        contrastive_weight: float,
        contrastive_temperature: float,
        mte_arithmetic: str,
        translation_gradient: str = "fused",
    ) -> None:
        super().__init__(task)
        if translation_weight <= 0 and contrastive_weight <= 0:
            raise UserError("--translation-weight and --contrastive-weight are both 0: there is nothing to train")
        if contrastive_temperature <= 0:
            raise UserError(f"--contrastive-temperature is {contrastive_temperature}; give a positive number")
        self.label_smoothing = label_smoothing
        self.fused = translation_gradient == "fused"
        self.translation_weight = translation_weight
        self.contrastive_weight = contrastive_weight
        self.contrastive_scale = 1.0 / contrastive_temperature
        self.released = mte_arithmetic == "released"

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """The loss of one batch: summed over its target tokens, with this rank's share of the contrast."""
        batch = self.batch(sample)
        net_input = dict(sample["net_input"])
        if self.translation_weight == 0:
            net_input["prev_output_tokens"] = None
        contrast = self.contrast_tokens(sample["target"]) if self.contrastive_weight > 0 else None
        features, extra = model(**net_input, contrast_tokens=contrast, pool_projected=self.released, features_only=True)
        zero = sample["net_input"]["src_tokens"].new_zeros((), dtype=torch.float32)
        loss, nll, bad_rows = zero, zero, zero.long()
        logged: Log = {"ntokens": batch.tokens, "nsentences": batch.rows}
        if features is not None:
            weight, tokens = extra["output_weight"], int(sample["ntokens"])
            smoothed, nll = self.translation_loss(features, weight, sample["target"], tokens)
            loss = loss + self.translation_weight * smoothed
        if batch.dummy:
            loss, nll = loss * 0.0, nll * 0.0
        if contrast is not None:
            source, target = (F.normalize(extra[name].float(), dim=1) for name in ("source_pooled", "target_pooled"))
            # The pooled rows of a dummy batch stay in the graph: every rank's backward meets the same collectives.
            loss = loss + self.contrastive_loss(batch, source, target, logged) + 0.0 * (source.sum() + target.sum())
            bad_rows = count_nonfinite_rows(source, target)
        logged.update(loss=loss.detach(), nll_loss=nll.detach(), sample_size=batch.tokens)
        return Outcome(loss, batch.tokens, logged, bad_rows)

    def contrast_tokens(self, target: Tensor) -> Tensor:
        """Targets as encoder input: `<s>` put before (batch, length) ids that end with `</s>`."""
        return F.pad(target, (1, 0), value=self.task.target_dictionary.bos())

    def translation_loss(self, features: Tensor, weight: Tensor, target: Tensor, tokens: int) -> tuple[Tensor, Tensor]:
        """Summed smoothed loss and summed negative log likelihood of a batch with this many target tokens."""
        return chunked_linear_label_smoothed_nll(
            features.flatten(0, 1),
            weight,
            target.flatten(),
            self.label_smoothing,
            self.padding_idx,
            counted=tokens,
            kind="uniform" if self.released else "fairseq",
            fused=self.fused,
        )

    def contrastive_loss(self, batch: Batch, source: Tensor, target: Tensor, logged: Log) -> Tensor:
        """This rank's share of the contrast, weighted so that fairseq's division by tokens leaves the plain weight.

        Over ranks the shares add up to weight x total tokens x InfoNCE of the whole batch.

        Args:
            batch: of this rank.
            source: (batch, dim) pooled sources, L2-normalised.
            target: (batch, dim) pooled targets, L2-normalised.
            logged: gets the contrast's entries.
        """
        term = contrast_term(
            *(batch, "contrastive", self.contrastive_weight, source, target, self.contrastive_scale),
            hits=("source_hits", "target_hits"),
        )
        rows = term.logged["contrastive_rows"]
        total_tokens, total_rows = batch.total(batch.tokens, rows, like=source, dtype=torch.float64)
        # fairseq divides the summed loss by all target tokens; the contrast is a mean over sentences already.
        weight = self.contrastive_weight * total_tokens
        if self.released:
            weight = weight / total_rows.clamp(min=1)
        weight, total_tokens = weight.to(source.dtype), total_tokens.to(source.dtype)
        hits = 0.5 * (term.logged["source_hits"] + term.logged["target_hits"]).float()
        logged.update(contrastive_loss=(term.share * total_tokens).detach(), accuracy_hits=hits, accuracy_rows=rows)
        return term.share * weight

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log per-token losses in base 2, as fairseq does, and the retrieval accuracy within batches."""
        log_ratio("loss", logging_outputs, "loss", "sample_size", math.log(2))
        log_ratio("nll_loss", logging_outputs, "nll_loss", "ntokens", math.log(2))
        log_ratio("contrastive_loss", logging_outputs, "contrastive_loss", "sample_size")
        log_ratio("accuracy", logging_outputs, "accuracy_hits", "accuracy_rows", scale=100)
        metrics.log_derived("ppl", lambda meters: 2.0 ** min(meters["nll_loss"].avg, 60.0))
