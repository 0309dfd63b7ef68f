"""Criterion `ccrk`: 1-to-K contrast, image-text matching with hard negatives, masked words (CCRK)."""

import functools
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum, FairseqDataclass
from torch import Tensor

from mclip_fairseq.criterions.terms import (
    Batch,
    Outcome,
    Term,
    TermsCriterion,
    contrast_term,
    log_ratio,
    weighted_mean,
)
from mclip_fairseq.losses import (
    MatchingPairs,
    draw_matching_pairs,
    gather_rows,
    global_one_to_k_info_nce,
    hard_negative_weights,
    masked_word_loss,
    matching_loss,
)
from mclip_fairseq.losses.pairs import ChosenPairs, Encoded
from mclip_fairseq.storage.errors import UserError

# Their places are the numbers of the released option --neg_sample_type.
DRAWS = ("uniform", "probability", "similarity")
MASKED = ("masked_tokens", "masked_positions", "masked_labels")
PRIME = 1_000_003
HITS = ("image_to_text_hits", "text_to_image_hits")


@dataclass
class CCRKCriterionConfig(FairseqDataclass):
    """Weights of the three terms, and how pairs are drawn."""

    contrast_weight: float = field(default=1.0, metadata={"help": "weight of the contrast; 0 is off"})
    matching_weight: float = field(default=1.0, metadata={"help": "weight of image-text matching; 0 is off"})
    masked_words_weight: float = field(
        default=1.0, metadata={"help": "weight of the masked words, where the data mask some; 0 is off"}
    )
    contrast_divisor: str = field(
        default="k",
        metadata={"help": "divides the contrast with K captions: k (as published) or a positive number; 1 is the sum"},
    )
    positive_draw: ChoiceEnum(DRAWS) = field(  # type: ignore[valid-type]
        default="probability",
        metadata={
            "help": "which of an image's captions is matched: uniform, or rather one that is less similar to it, by "
            "probability (as published) or by similarity"
        },
    )
    local_negatives: bool = field(
        default=False,
        metadata={
            "help": "draw hard images and captions among those of the own rank only, as the released code does; "
            "otherwise among those of all ranks, whose states are then sent to every rank"
        },
    )


@register_criterion("ccrk", dataclass=CCRKCriterionConfig)
class CCRKCriterion(TermsCriterion):
    """Three terms, each a mean over the images, pairs or words of all ranks.

    | batch entry | shape | needed |
    |---|---|---|
    | `net_input` | what the model reads; `masked_*` for the masked words | always |
    | `captions` | int, K | for the 1-to-K contrast; absent: each caption has its own row |
    | `group` | (batch,) int64, equal for equal images | always |
    | `nsentences`, `ntokens` | int; images, tokens | always |
    | `is_dummy` | bool | absent means False |

    The model returns what `CCRKModel.forward` lists.
    """

    def __init__(
        self,
        task: Any,
        contrast_weight: float,
        matching_weight: float,
        masked_words_weight: float,
        contrast_divisor: str,
        positive_draw: str,
        local_negatives: bool = False,
    ) -> None:
        super().__init__(task)
        self.weights = {"contrast": contrast_weight, "matching": matching_weight, "masked_words": masked_words_weight}
        if max(self.weights.values()) <= 0 or min(self.weights.values()) < 0:
            raise UserError("--contrast-weight, --matching-weight and --masked-words-weight: give one above 0")
        self.divisor = parse_divisor(contrast_divisor)
        self.kind = DRAWS.index(str(positive_draw))
        self.local = local_negatives
        self.draws = SharedDraws()

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """This rank's share of (loss x images of all ranks)."""
        batch = self.batch(sample)
        inputs = dict(sample["net_input"])
        if self.weights["masked_words"] == 0:
            inputs = {name: value for name, value in inputs.items() if name not in MASKED}
        choose = None
        if self.weights["matching"] > 0 or "masked_tokens" in inputs:
            choose = functools.partial(self.choose_pairs, batch, sample.get("captions"), sample["group"])
        out = model(**inputs, choose_pairs=choose)
        terms = [self.contrast(batch, out, sample)]
        if out["match"] is not None:
            terms.append(self.matching(batch, out["match"], out["match_labels"]))
        if out["words"] is not None:
            terms.append(self.masked_words(batch, out["words"], out["word_labels"]))
        captions = int(sample.get("captions", 1))
        logged = {"temperature": batch.rows / out["scale"].detach(), "captions": batch.rows * captions}
        return weighted_mean(batch, terms, out["anchor"], [out["image"], out["text"]], logged)

    def choose_pairs(self, batch: Batch, captions: int | None, group: Tensor, encoded: Encoded) -> ChosenPairs:
        """The pairs of this rank's images, with hard images and captions of all ranks.

        Args:
            batch: of this rank.
            captions: K, or None for one.
            group: (batch,) equal for equal images.
            encoded: of this rank.
        """
        images, each = len(encoded.image), captions or 1
        rows, offset, ids = images, 0, group
        if batch.gather and not self.local:
            union, start = encoded.of_all_ranks(batch.rows)
            ids = gather_rows(group[: batch.rows])[0]
            if len(ids):  # else every rank has a dummy batch, and its own will do
                rows, offset, encoded = batch.rows, start, union
            else:
                ids = group
        pairs = self.draw_pairs(encoded, each, ids, slice(offset, offset + rows))
        if not rows:  # a dummy batch runs through the fusion encoder, too, so that the ranks stay in step
            first, own = group.new_zeros(1), torch.arange(images, device=group.device) * each
            return ChosenPairs.of(encoded, MatchingPairs(first, first, first), own)
        return ChosenPairs.of(encoded, pairs, pairs.text[:rows] - offset * each)

    def draw_pairs(self, encoded: Encoded, captions: int, ids: Tensor, own: slice) -> MatchingPairs:
        """Draw the pairs of some of the images; equal images are not negatives of each other.

        Args:
            encoded: images with K captions each.
            captions: K.
            ids: (images,) equal for equal images.
            own: the images.
        """
        text = encoded.text.view(len(encoded.image), captions, -1)
        weights = hard_negative_weights(encoded.image, text, encoded.scale, self.kind, ids)
        return draw_matching_pairs(weights, self.draws.generator(weights.image.device), own)

    def contrast(self, batch: Batch, out: dict[str, Tensor], sample: dict[str, Any]) -> Term:
        """1-to-K where each image has K captions, otherwise with all captions of one image as positives."""
        image, text, scale, weight = out["image"], out["text"], out["scale"], self.weights["contrast"]
        if "captions" not in sample:
            return contrast_term(batch, "contrast", weight, image, text, scale, ids=sample["group"], hits=HITS)
        rows = 0 if batch.dummy or weight == 0 else len(image)
        texts = text.view(len(image), sample["captions"], -1)[:rows]
        result = global_one_to_k_info_nce(
            *(image[:rows], texts, scale, self.divisor),
            gather=batch.gather and weight != 0,
            block_rows=batch.block_rows,
        )
        hits = {"contrast_rows": rows, HITS[0]: result.hits_xy, HITS[1]: result.hits_yx}
        return Term("contrast", weight, result.loss, hits)

    def matching(self, batch: Batch, logits: Tensor, labels: Tensor) -> Term:
        """Cross entropy of match and mismatch."""
        pairs = 0 if batch.dummy else len(labels)
        share = matching_loss(logits[:pairs], labels[:pairs], gather=batch.gather)
        right = (logits[:pairs].argmax(dim=1) == labels[:pairs]).sum()
        return Term("matching", self.weights["matching"], share, {"matching_pairs": pairs, "matching_right": right})

    def masked_words(self, batch: Batch, logits: Tensor, labels: Tensor) -> Term:
        """Cross entropy of the masked words."""
        words = 0 if batch.dummy else len(labels)
        share = masked_word_loss(logits[:words], labels[:words], gather=batch.gather)
        right = (logits[:words].argmax(dim=1) == labels[:words]).sum()
        logged = {"masked_words": words, "masked_words_right": right}
        return Term("masked_words", self.weights["masked_words"], share, logged)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log all losses in nats, the temperature, and how often the answers are right in percent."""
        for name in ("loss", "contrast_loss", "matching_loss", "masked_words_loss", "temperature"):
            if any(name in output for output in logging_outputs):
                log_ratio(name, logging_outputs, name, "sample_size")
        log_ratio("i2t_R@1", logging_outputs, HITS[0], "contrast_rows", scale=100)
        log_ratio("t2i_R@1", logging_outputs, HITS[1], "captions", scale=100)
        log_ratio("matching_accuracy", logging_outputs, "matching_right", "matching_pairs", scale=100)
        log_ratio("masked_words_accuracy", logging_outputs, "masked_words_right", "masked_words", scale=100)


class SharedDraws:
    """Generators that are equal on all ranks in the same step, whatever a rank has drawn before.

    fairseq seeds torch with the seed and the number of the update before each of them. The batches of one update
    (--update-freq) are counted.
    """

    def __init__(self) -> None:
        self.seed: int | None = None
        self.batch = 0

    def generator(self, device: torch.device) -> torch.Generator:
        """The generator of the next batch."""
        seed = torch.initial_seed()
        self.batch = self.batch + 1 if seed == self.seed else 0
        self.seed = seed
        return torch.Generator(device).manual_seed((seed * PRIME + self.batch) % 2**63)


def parse_divisor(text: str) -> float | None:
    """What the losses take for `--contrast-divisor`; None stands for K.

    Raises:
        UserError: neither `k` nor a positive number.
    """
    if text == "k":
        return None
    try:
        number = float(text)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"--contrast-divisor is {text!r}; give k or a positive number")
    return number
