"""Criterion `mte`: label-smoothed translation loss plus sentence contrast (mCLIP, section 3.1)."""

import math
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import FairseqCriterion, register_criterion
from fairseq.dataclass import FairseqDataclass
from fairseq.logging import metrics
from torch import Tensor

from mclip_fairseq.criterions.logging import log_ratio, loss_arithmetic
from mclip_fairseq.losses import chunked_linear_label_smoothed_nll, global_info_nce, sum_over_ranks
from mclip_fairseq.losses.finite import NONFINITE, count_nonfinite_rows
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
    contrastive_temperature: float = field(default=0.1, metadata={"help": "divides the cosine"})
    mte_arithmetic: loss_arithmetic = field(
        default="sound",
        metadata={
            "help": "sound, or released: contrastive weight divided by the batch's sentences, smoothing over all "
            "entries, source pooled after the language projection"
        },
    )


@register_criterion("mte", dataclass=MTECriterionConfig)
class MTECriterion(FairseqCriterion):
    """Loss of the translation model; all sums are over target tokens, so that fairseq's normalisation holds."""

    def __init__(
        self,
        task: Any,
        label_smoothing: float,
        translation_weight: float,
        contrastive_weight: float,
        contrastive_temperature: float,
        mte_arithmetic: str,
    ) -> None:
        super().__init__(task)
        if translation_weight <= 0 and contrastive_weight <= 0:
            raise UserError("--translation-weight and --contrastive-weight are both 0: there is nothing to train")
        if contrastive_temperature <= 0:
            raise UserError(f"--contrastive-temperature is {contrastive_temperature}; give a positive number")
        self.label_smoothing = label_smoothing
        self.translation_weight = translation_weight
        self.contrastive_weight = contrastive_weight
        self.contrastive_scale = 1.0 / contrastive_temperature
        self.released = mte_arithmetic == "released"

    def forward(
        self, model: torch.nn.Module, sample: dict[str, Any], reduce: bool = True
    ) -> tuple[Tensor, int, dict[str, Any]]:
        """Loss of one batch.

        Args:
            model: `MTEModel`, possibly wrapped for distribution.
            sample: a batch of `ParallelDataset`.
            reduce: unused; fairseq passes it.

        Returns:
            the summed loss, the number of target tokens, and what is logged.
        """
        dummy = bool(sample.get("is_dummy", False))
        net_input = dict(sample["net_input"])
        if self.translation_weight == 0:
            net_input["prev_output_tokens"] = None
        contrast = self.contrast_tokens(sample["target"]) if self.contrastive_weight > 0 else None
        features, extra = model(**net_input, contrast_tokens=contrast, pool_projected=self.released, features_only=True)
        tokens = 0 if dummy else int(sample["ntokens"])
        zero = sample["net_input"]["src_tokens"].new_zeros((), dtype=torch.float32)
        loss, nll = zero, zero
        logged: dict[str, Any] = {"ntokens": tokens, "nsentences": 0 if dummy else int(sample["nsentences"])}
        if features is not None:
            smoothed, nll = self.translation_loss(features, extra["output_weight"], sample["target"])
            loss = loss + self.translation_weight * smoothed
        if dummy:
            loss, nll = loss * 0.0, nll * 0.0
        if contrast is not None:
            loss = loss + self.contrastive_loss(extra, tokens, logged, dummy)
        logged.update(loss=loss.detach(), nll_loss=nll.detach(), sample_size=tokens)
        return loss, tokens, logged

    def contrast_tokens(self, target: Tensor) -> Tensor:
        """Targets as encoder input: `<s>` put before (batch, length) ids that end with `</s>`."""
        return F.pad(target, (1, 0), value=self.task.target_dictionary.bos())

    def translation_loss(self, features: Tensor, weight: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Summed smoothed loss and summed negative log likelihood."""
        return chunked_linear_label_smoothed_nll(
            features.flatten(0, 1),
            weight,
            target.flatten(),
            self.label_smoothing,
            self.padding_idx,
            kind="uniform" if self.released else "fairseq",
        )

    def contrastive_loss(self, extra: dict[str, Any], tokens: int, logged: dict[str, Any], dummy: bool) -> Tensor:
        """This rank's share of the contrast, weighted so that fairseq's division by tokens leaves the plain weight.

        Over ranks the shares add up to weight x total tokens x InfoNCE of the whole batch.
        """
        source, target = (F.normalize(extra[name].float(), dim=1) for name in ("source_pooled", "target_pooled"))
        rows = slice(0, 0) if dummy else slice(None)
        out = global_info_nce(source[rows], target[rows], self.contrastive_scale, gather=self.training)
        counts = torch.tensor([tokens, out.rows], dtype=torch.float64, device=source.device)
        total_tokens, total_rows = (sum_over_ranks(counts) if self.training else counts).tolist()
        weight = self.contrastive_weight * total_tokens
        if self.released and total_rows:
            weight /= total_rows
        logged["contrastive_loss"] = (out.loss * total_tokens).detach()
        logged[NONFINITE] = count_nonfinite_rows(source, target)
        logged.update(accuracy_hits=0.5 * (out.hits_xy + out.hits_yx).float(), accuracy_rows=out.rows)
        # The pooled rows of a dummy batch stay in the graph, so that every rank's backward meets the same collectives.
        return out.loss * weight + 0.0 * (source.sum() + target.sum())

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log per-token losses in base 2, as fairseq does, and the retrieval accuracy within batches."""
        log_ratio("loss", logging_outputs, "loss", "sample_size", math.log(2))
        log_ratio("nll_loss", logging_outputs, "nll_loss", "ntokens", math.log(2))
        log_ratio("contrastive_loss", logging_outputs, "contrastive_loss", "sample_size")
        log_ratio("accuracy", logging_outputs, "accuracy_hits", "accuracy_rows", scale=100)
        metrics.log_derived("ppl", lambda meters: 2.0 ** min(meters["nll_loss"].avg, 60.0))

    @staticmethod
    def logging_outputs_can_be_summed() -> bool:
        """True: all entries are sums."""
        return True
