"""Terms between a student's text vectors and its teacher's that several criterions offer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch.nn.functional as F
from fairseq.dataclass import FairseqDataclass
from torch import Tensor

from mclip_fairseq.criterions.terms import Batch, Log, Term, contrast_term, log_ratio
from mclip_fairseq.losses.distillation import global_distillation_loss
from mclip_fairseq.losses.relational import global_soft_label_loss, global_structure_loss
from mclip_fairseq.storage.errors import UserError


@dataclass
class RelationsConfig(FairseqDataclass):
    """Weights of the terms that compare relations: soft labels over images, structure, and pairs of translations."""

    soft_label_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the divergence of how the student's texts rank a bank of images from how the teacher's "
            "rank it (C2KD); needs --image-features; 0 is off"
        },
    )
    soft_label_temperature: float = field(default=0.05, metadata={"help": "temperature of both rankings (C2KD: 0.1)"})
    soft_label_images: int = field(
        default=2048, metadata={"help": "size of the bank, drawn from --image-features by --seed; 0: all of them"}
    )
    structure_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the squared difference of the student's and the teacher's cosines between the texts of "
            "a batch (METAL); 0 is off"
        },
    )
    pair_weight: float = field(
        default=0.0,
        metadata={
            "help": "weight of the contrast of captions with their translations; needs --pair-language; 0 is off"
        },
    )
    pair_scale: float = field(default=20.0, metadata={"help": "fixed factor of the cosine in that contrast"})


class Relations:
    """The terms of `RelationsConfig` for one criterion.

    Args:
        task: with `image_bank`, where soft labels are asked for.
        cfg: the weights.

    Raises:
        UserError: a weight is negative, the temperature is not positive, or image features are missing.
    """

    def __init__(self, task: Any, cfg: RelationsConfig) -> None:
        if min(cfg.soft_label_weight, cfg.structure_weight, cfg.pair_weight) < 0:
            raise UserError(
                "--soft-label-weight, --structure-weight and --pair-weight must not be negative; 0 switches one off"
            )
        if (cfg.pair_weight > 0) != bool(getattr(getattr(task, "cfg", None), "pair_language", "")):
            raise UserError("--pair-weight and --pair-language need each other; give both or neither")
        if cfg.soft_label_temperature <= 0:
            raise UserError(f"--soft-label-temperature is {cfg.soft_label_temperature}; give a positive number")
        if cfg.soft_label_images < 0:
            raise UserError(f"--soft-label-images is {cfg.soft_label_images}; give a positive number, or 0 for all")
        if cfg.soft_label_weight > 0 and getattr(task, "images", None) is None:
            raise UserError("--soft-label-weight needs a bank of images; give --image-features")
        self.cfg = cfg
        self.bank: Tensor | None = task.image_bank(cfg.soft_label_images) if cfg.soft_label_weight > 0 else None

    @property
    def active(self) -> bool:
        """Whether any term is on."""
        return max(self.cfg.soft_label_weight, self.cfg.structure_weight, self.cfg.pair_weight) > 0

    def inputs(self, net_input: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """What the model needs beside the batch: `image_bank`, (images, teacher dim), on the batch's device."""
        if self.bank is None:
            return {}
        self.bank = self.bank.to(next(iter(net_input.values())).device)
        return {"image_bank": self.bank}

    def terms(
        self,
        batch: Batch,
        text: Tensor,
        teacher_text: Tensor | None,
        bank: Tensor | None,
        translation: Tensor | None,
    ) -> list[Term]:
        """The terms that are on.

        Args:
            batch: of this rank.
            text: (batch, dim), L2-normalised.
            teacher_text: (batch, dim), L2-normalised; None where the batch has none.
            bank: (images, dim), L2-normalised; None without soft labels.
            translation: (batch, dim), L2-normalised; None where the batch has none.
        """
        pairs = contrast_term(batch, "pair", self.cfg.pair_weight, text, translation, self.cfg.pair_scale)
        text, teacher_text, rows = comparable(batch, text, teacher_text)
        logged: Log = {"relation_rows": rows}
        terms = [pairs] if self.cfg.pair_weight > 0 else []
        if bank is not None:
            scale = 1 / self.cfg.soft_label_temperature
            share = global_soft_label_loss(text, teacher_text, bank, scale, gather=batch.gather)
            terms.append(Term("soft_label", self.cfg.soft_label_weight, share, logged))
        if self.cfg.structure_weight > 0:
            share = global_structure_loss(text, teacher_text, gather=batch.gather)
            terms.append(Term("structure", self.cfg.structure_weight, share, logged))
        return terms


def read_prefixes(text: str, dim: int | None) -> list[int]:
    """The widths of --matryoshka below the whole one.

    Args:
        text: whole numbers, separated by commas; may be empty, and may end with the whole width.
        dim: width of the joint space; None where it is unknown.

    Raises:
        UserError: they are not whole numbers in ascending order, or exceed the width.
    """
    words = [word.strip() for word in text.split(",")] if text.strip() else []
    widths = [int(word) if word.isascii() and word.isdigit() else 0 for word in words]
    if widths != sorted(set(widths)) or 0 in widths:
        raise UserError(f"--matryoshka is {text!r}; give positive whole numbers in ascending order, such as 64,128")
    if dim is not None and widths and widths[-1] > dim:
        raise UserError(f"--matryoshka names {widths[-1]} dimensions, but the joint space has {dim}; leave that out")
    return [width for width in widths if width != dim]


def unit_prefix(vectors: Tensor | None, width: int) -> Tensor | None:
    """The first dimensions of vectors, (n, width), L2-normalised again; None where there are none.

    Args:
        vectors: (n, dim), or None.
        width: dimensions to keep.
    """
    return None if vectors is None else F.normalize(vectors[:, :width], dim=1)


def comparable(batch: Batch, text: Tensor, teacher_text: Tensor | None) -> tuple[Tensor, Tensor, int]:
    """The rows that have a teacher text: none in a dummy batch or in one without such texts.

    Args:
        batch: of this rank.
        text: (batch, dim).
        teacher_text: (batch, dim), or None.

    Returns:
        texts and teacher texts, (rows, dim) each, and their number.
    """
    rows = 0 if batch.dummy or teacher_text is None else len(text)
    return text[:rows], text[:0] if teacher_text is None else teacher_text[:rows], rows


def distance_term(batch: Batch, name: str, weight: float, kind: str, text: Tensor, teacher_text: Tensor | None) -> Term:
    """Distance of unit vectors: `mse` is |s - t|^2, summed over dimensions, and `cosine` half of it, 1 - s.t.

    Args:
        batch: of this rank.
        name: of the term.
        weight: its factor.
        kind: `mse` or `cosine`.
        text: (batch, dim), L2-normalised.
        teacher_text: (batch, dim), L2-normalised; None where the batch has none. A trained target gets gradients.
    """
    text, teacher_text, rows = comparable(batch, text, teacher_text)
    share = global_distillation_loss(text, teacher_text, kind, gather=batch.gather)
    if kind == "mse":
        share = share * text.shape[1]
    return Term(name, weight, share, {f"{name}_rows": rows})


def log_relations(outputs: Sequence[Log]) -> None:
    """Log the relations that are on, in nats, and the structure in squared cosines."""
    for name in ("soft_label_loss", "structure_loss", "pair_loss"):
        if any(name in output for output in outputs):
            log_ratio(name, outputs, name, "sample_size")
