"""Criterion `distillation`: student text against the teacher's features (M-CLIP, AltCLIP, the first stage of MLA)."""

from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.criterions import register_criterion
from fairseq.dataclass import ChoiceEnum
from torch import Tensor

from mclip_fairseq.criterions.teacher_terms import Relations, RelationsConfig, log_relations
from mclip_fairseq.criterions.terms import Batch, Outcome, Term, TermsCriterion, log_ratio, weighted_mean
from mclip_fairseq.losses.distillation import global_distillation_loss
from mclip_fairseq.losses.matching import masked_word_loss
from mclip_fairseq.storage.errors import UserError

Direction = ChoiceEnum(["both", "released"])


@dataclass
class DistillationCriterionConfig(RelationsConfig):
    """Weights of the distances between student and teacher; any sum of them is trained."""

    mse_weight: float = field(
        default=1.0, metadata={"help": "weight of the mean squared error, over captions and dimensions; 0 is off"}
    )
    cosine_weight: float = field(default=0.0, metadata={"help": "weight of 1 - cosine; 0 is off"})
    contrastive_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the contrast between student and teacher, with the scale that the model learns "
            "(--distillation-scale-init); 0 is off"
        },
    )
    layer_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the sum, over the layers of --distill-layers, of their mean squared errors (mla; "
            "kd_layers); 0 is off"
        },
    )
    masked_word_weight: float = field(
        default=0.0,
        metadata={"help": "weight of the cross entropy of hidden words (post-KD of AltCLIP); needs --hide-words"},
    )
    contrast_direction: Direction = field(  # type: ignore[valid-type]
        default="both",
        metadata={"help": "both: student -> teacher and teacher -> student; released: teacher -> student alone"},
    )


@register_criterion("distillation", dataclass=DistillationCriterionConfig)
class DistillationCriterion(TermsCriterion):
    """A weighted sum of distances: means over the captions of all ranks.

    | batch entry | shape | needed |
    |---|---|---|
    | `net_input` | what the model reads, `teacher_text` included | always |
    | `nsentences`, `ntokens` | int | always |
    | `is_dummy` | bool | absent means False |

    The model returns `student` and `teacher_text`, (batch, teacher dim), as they are, and with
    `--contrastive-weight` also `distillation_scale`, the 0-d factor of the cosine. The factor is a parameter of the
    model, so that it is stored with it and DDP sees it. With `--masked-word-weight` it also returns `words`,
    (n, entries), and `word_labels`, (n,) int64. With `--soft-label-weight` it takes `image_bank`, (images, teacher
    dim), and returns it L2-normalised. With `--layer-weight` it returns `student_layers` and `teacher_layers`, lists of
    (batch, width).
    """

    def __init__(self, task: Any, cfg: DistillationCriterionConfig) -> None:
        super().__init__(task)
        self.relations = Relations(task, cfg)
        weights = {"mse": cfg.mse_weight, "cosine": cfg.cosine_weight, "contrastive": cfg.contrastive_weight}
        if min(weights.values()) < 0 or not (any(weights.values()) or self.relations.active):
            raise UserError(
                "--mse-weight, --cosine-weight and --contrastive-weight must not be negative, and one must be above 0"
            )
        self.weights = {kind: weight for kind, weight in weights.items() if weight > 0}
        self.direction = str(cfg.contrast_direction)
        self.masked_word_weight, self.layer_weight = cfg.masked_word_weight, cfg.layer_weight

    def outcome(self, model: torch.nn.Module, sample: dict[str, Any]) -> Outcome:
        """This rank's share of (loss x captions of all ranks)."""
        out = model(**sample["net_input"], **self.relations.inputs(sample["net_input"]))
        batch = self.batch(sample)
        student, teacher = out["student"].float(), out["teacher_text"].float()
        scale: Tensor | None = out.get("distillation_scale")
        if scale is None and "contrastive" in self.weights:
            raise UserError("--contrastive-weight needs a learned scale; pass --distillation-scale-init 4.48")
        rows = 0 if batch.dummy else len(student)
        terms = [
            Term(
                kind,
                weight,
                global_distillation_loss(
                    *(student[:rows], teacher[:rows], kind, scale, self.direction),
                    gather=batch.gather,
                    block_rows=batch.block_rows,
                ),
            )
            for kind, weight in self.weights.items()
        ]
        if self.relations.active:
            text, target = F.normalize(student, dim=1), F.normalize(teacher, dim=1)
            terms += self.relations.terms(batch, text, target, out.get("image_bank"), out.get("translation"))
        if self.layer_weight > 0 or "student_layers" in out:
            terms.append(self.layers(batch, out))
        if self.masked_word_weight > 0:
            terms.append(self.masked_words(batch, out))
        # Some terms do not use the scale, and a dummy batch uses nothing: the zeros keep all of it in the graph.
        anchor = student.sum() * 0.0 + (0.0 if scale is None else scale * 0.0)
        logged: dict[str, Any] = {"cosine": F.cosine_similarity(student[:rows], teacher[:rows]).sum().detach()}
        if scale is not None:
            logged["scale"] = scale.detach() * batch.rows
        return weighted_mean(batch, terms, anchor, [student, teacher], logged)

    def layers(self, batch: Batch, out: dict[str, Any]) -> Term:
        """The sum of the mean squared errors of all layers' states.

        Raises:
            UserError: the model compares no layers, or they weigh nothing.
        """
        if not out.get("student_layers") or self.layer_weight <= 0:
            raise UserError("--layer-weight above 0 and --distill-layers of the model mla go together; give both")
        shares = [
            global_distillation_loss(own[: batch.rows].float(), given[: batch.rows].float(), "mse", gather=batch.gather)
            for own, given in zip(out["student_layers"], out["teacher_layers"], strict=True)
        ]
        return Term("layers", self.layer_weight, torch.stack(shares).sum())

    def masked_words(self, batch: Batch, out: dict[str, Any]) -> Term:
        """Mean cross entropy of the hidden words of all ranks."""
        if out.get("words") is None:
            raise UserError("--masked-word-weight needs hidden words and a model altclip; give --hide-words 0.15")
        words = 0 if batch.dummy else len(out["words"])
        share = masked_word_loss(out["words"][:words], out["word_labels"][:words], gather=batch.gather)
        return Term("masked_word", self.masked_word_weight, share)

    @staticmethod
    def reduce_metrics(logging_outputs: list[dict[str, Any]]) -> None:
        """Log the loss, each distance, the mean cosine and the scale."""
        log_ratio("loss", logging_outputs, "loss", "sample_size")
        log_relations(logging_outputs)
        present = set().union(*logging_outputs)
        losses = ("mse_loss", "cosine_loss", "contrastive_loss", "layers_loss", "masked_word_loss")
        for name in (*losses, "cosine", "scale"):
            if name in present:
                log_ratio(name, logging_outputs, name, "sample_size")
