"""The terms of the criterions `trikd` and `distillation` that look at the teacher's text features."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.criterions.distillation import DistillationCriterion, DistillationCriterionConfig
from mclip_fairseq.criterions.teacher_terms import read_prefixes
from mclip_fairseq.criterions.trikd import TriKDCriterion, TriKDCriterionConfig
from mclip_fairseq.data.tokens import FlatTokens, data_dictionary
from mclip_fairseq.losses import soft_label_loss, structure_loss, symmetric_info_nce
from mclip_fairseq.models.projectors import XProjector, c_projector
from mclip_fairseq.storage.features import FeatureStore
from mclip_fairseq.tasks.caption_files import translation_column
from mclip_fairseq.tasks.trikd import TriKDTask, TriKDTaskConfig

ROWS, DIM = 5, 4


def units(rows: int, seed: int) -> Tensor:
    return F.normalize(torch.randn(rows, DIM, generator=torch.Generator().manual_seed(seed)), dim=1)


class Owner:
    """A task with a bank of six images."""

    images = object()
    cfg = SimpleNamespace(pair_language="")

    @staticmethod
    def image_bank(count: int) -> Tensor:
        return units(6, 9)[: count or None]


class Answer(torch.nn.Module):
    """A model whose output is given; it passes the bank on."""

    def __init__(self, teacher: bool = True) -> None:
        super().__init__()
        self.text = units(ROWS, 1).requires_grad_()
        self.teacher = units(ROWS, 2) if teacher else None
        self.bank: Tensor | None = None
        self.translation: Tensor | None = None

    def forward(self, text_tokens: Tensor, image_bank: Tensor | None = None) -> dict[str, Any]:
        return {
            **{"text": self.text, "student": 3 * self.text, "image": None, "teacher_text": self.teacher},
            **{"scale": torch.tensor(2.0), "image_bank": image_bank if self.bank is None else self.bank},
            "translation": self.translation,
        }


def sample(**more: Any) -> dict[str, Any]:
    group = torch.arange(ROWS)
    return {"net_input": {"text_tokens": group}, "group": group, "nsentences": ROWS, "ntokens": ROWS, **more}


def mean_loss(criterion: Any, model: Answer, **more: Any) -> float:
    loss, size, _ = criterion(model, sample(**more))
    assert size == (0 if more.get("is_dummy") else ROWS)
    return float(loss.detach()) / ROWS


def trikd(
    weight: float = 0.0, kind: str = "mse", arithmetic: str = "sound", owner: Any = Owner, **relations: Any
) -> TriKDCriterion:
    cfg = TriKDCriterionConfig(image_text_weight=0.0, text_text_weight=weight, text_text_scale=8.0, **relations)
    return TriKDCriterion(owner, replace(cfg, text_text_loss=kind, trikd_arithmetic=arithmetic))


def test_distances_are_those_of_unit_vectors() -> None:
    """mse is w |s - t|^2, the sum over dimensions, which is twice the cosine's 1 - s.t."""
    model = Answer()
    assert model.teacher is not None
    expected = float((model.text - model.teacher).square().sum(dim=1).mean().detach())
    assert mean_loss(trikd(3.0), model) == pytest.approx(3 * expected, rel=1e-6)
    assert mean_loss(trikd(3.0, "cosine"), model) == pytest.approx(1.5 * expected, rel=1e-6)
    assert mean_loss(trikd(3.0, "infonce"), model) != pytest.approx(3 * expected, rel=1e-2)


def test_relations_are_added_with_their_weights() -> None:
    model = Answer()
    assert model.teacher is not None
    soft = float(soft_label_loss(model.text, model.teacher, units(6, 9)[:4], 1 / 0.2).detach())
    structure = float(structure_loss(model.text, model.teacher).detach())
    options: dict[str, Any] = {
        "soft_label_weight": 2.0,
        "soft_label_temperature": 0.2,
        "soft_label_images": 4,
        "structure_weight": 5.0,
    }
    assert mean_loss(trikd(**options), model) == pytest.approx(2 * soft + 5 * structure, rel=1e-5)
    # The student of `distillation` is not a unit vector; its relations are those of directions.
    of_student = DistillationCriterion(Owner, DistillationCriterionConfig(mse_weight=0.0, **options))
    assert mean_loss(of_student, model) == pytest.approx(2 * soft + 5 * structure, rel=1e-5)


def test_pairs_of_translations_are_contrasted() -> None:
    """As `symmetric_info_nce`, and nothing for captions without a translation."""
    owner = SimpleNamespace(images=None, cfg=SimpleNamespace(pair_language="en"))
    criterion = trikd(owner=owner, pair_weight=3.0, pair_scale=5.0)
    model = Answer()
    assert mean_loss(criterion, model) == 0
    model.translation = units(ROWS, 4)
    expected = float(symmetric_info_nce(model.text, model.translation, 5.0).detach())
    assert mean_loss(criterion, model) == pytest.approx(3 * expected, rel=1e-5)
    for wrong in (Owner, SimpleNamespace(images=None, cfg=SimpleNamespace(pair_language=""))):
        with pytest.raises(ValueError, match="need each other"):
            trikd(1.0, owner=wrong, pair_weight=1.0)
    with pytest.raises(ValueError, match="need each other"):
        trikd(1.0, owner=owner)


def test_a_caption_meets_its_translation_by_the_teacher_text(tiny_corpus: Path, tmp_path: Path) -> None:
    dictionary = data_dictionary(tiny_corpus / "captions")
    made = translation_column(tiny_corpus / "captions", "train", "fr", dictionary, 50, ["txt7", "txt2", "txt7"])
    assert made is not None
    french = FlatTokens.from_prefix(tiny_corpus / "captions" / "train.fr-None.fr", dictionary, 50)
    expected = french.batch(np.array([7, 2, 7]))
    assert torch.equal(made.batch(np.arange(3))["translation_tokens"], expected)
    assert translation_column(tiny_corpus / "captions", "train", "cs", dictionary, 50, ["txt7"]) is None
    assert translation_column(tiny_corpus / "captions", "train", "fr", dictionary, 50, None) is None
    with pytest.raises(ValueError, match="has no caption of the teacher text txt999; leave out --pair-language fr"):
        translation_column(tiny_corpus / "captions", "train", "fr", dictionary, 50, ["txt999"])


def test_matryoshka_is_the_mean_over_prefixes() -> None:
    """Each prefix counts as a model of that width, and what is logged under the plain names is of all dimensions."""
    options: dict[str, Any] = {"structure_weight": 5.0, "soft_label_weight": 1.0}
    model = Answer()
    assert model.teacher is not None
    losses = [mean_loss(trikd(3.0, **options), model)]
    for width in (2, 3):
        part = Answer()
        part.text, part.teacher = (F.normalize(rows[:, :width], dim=1) for rows in (model.text, model.teacher))
        part.bank = F.normalize(units(6, 9)[:, :width], dim=1)
        losses.append(mean_loss(trikd(3.0, **options), part))
    criterion = trikd(3.0, matryoshka=f"2,3,{DIM}", **options)
    assert criterion.prefixes == [2, 3, DIM]  # without a model, the whole width is not known
    criterion = trikd(3.0, matryoshka="2,3", **options)
    assert mean_loss(criterion, model) == pytest.approx(sum(losses) / 3, rel=1e-5)
    logged, plain = criterion(model, sample())[2], trikd(3.0, **options)(model, sample())[2]
    assert float(logged["text_text_loss"]) == pytest.approx(float(plain["text_text_loss"]))
    assert {"text_text_2_loss", "structure_3_loss"} <= logged.keys()


def test_the_whole_width_is_not_a_prefix() -> None:
    assert read_prefixes(" 64, 128,256", 256) == [64, 128]
    assert read_prefixes("", 256) == []


@pytest.mark.parametrize(("text", "message"), [("128,64", "ascending"), ("64,x", "whole numbers"), ("0", "positive")])
def test_other_prefixes_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_prefixes(text, 256)
    with pytest.raises(ValueError, match="joint space has 256"):
        read_prefixes("64,300", 256)


@pytest.mark.parametrize(("model", "more"), [(Answer(teacher=False), {}), (Answer(), {"is_dummy": True})])
def test_without_a_teacher_text_nothing_is_lost(model: Answer, more: dict[str, bool]) -> None:
    """Captions of images alone, and batches that only keep a rank in step."""
    criterion = trikd(3.0, soft_label_weight=2.0, structure_weight=5.0)
    assert mean_loss(criterion, model, **more) == 0
    loss = criterion(model, sample(**more))[0]
    loss.backward()
    assert model.text.grad is not None
    assert model.text.grad.abs().max() == 0


@pytest.mark.parametrize(
    ("relations", "message"),
    [
        ({"structure_weight": -1.0}, "must not be negative"),
        ({"soft_label_weight": 1.0, "soft_label_temperature": 0.0}, "give a positive number"),
        ({"soft_label_weight": 1.0, "soft_label_images": -1}, "or 0 for all"),
        ({"structure_weight": 1.0, "arithmetic": "released"}, "two published terms alone"),
        ({"kind": "mse", "arithmetic": "released", "weight": 1.0}, "two published terms alone"),
        ({"matryoshka": "2", "arithmetic": "released", "kind": "infonce", "weight": 1.0}, "has no prefixes"),
        ({"kind": "infonce"}, "nothing to train"),
    ],
)
def test_contradictory_options_are_refused(relations: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trikd(**relations)


def test_soft_labels_need_images() -> None:
    with pytest.raises(ValueError, match="give --image-features"):
        trikd(owner=SimpleNamespace(images=None), soft_label_weight=1.0)


def test_the_bank_holds_images_of_training_captions_alone(tiny_corpus: Path, tmp_path: Path) -> None:
    """The validation images are in the same feature directory."""
    data = tmp_path / "data"
    data.mkdir()
    for file in (tiny_corpus / "captions").iterdir():
        (data / file.name).symlink_to(file)
    (data / "train.en.ids").unlink()
    (data / "train.de.ids").unlink()
    (data / "train.fr.ids").write_text("img3\ttxt3\nimg7\ttxt7\nimg3\ttxt43\n")
    features = tiny_corpus / "features" / "image"
    task = TriKDTask.setup_task(
        TriKDTaskConfig(data=str(data), image_features=str(features), save_dir=str(tmp_path), seed=1, cpu=True)
    )
    store = FeatureStore.open(features)
    expected = {tuple(row) for row in store.take(store.rows(["img3", "img7"]))}
    assert {tuple(row) for row in task.image_bank(0).numpy()} == expected
    assert {tuple(row) for row in task.image_bank(1).numpy()} < expected


def test_projectors_that_start_at_the_identity_leave_the_order_of_cosines_alone() -> None:
    """The C-projector changes nothing; a layer of the X-projector begins as the LayerNorm of its input."""
    assert torch.equal(c_projector(DIM, DIM, "identity")(units(ROWS, 3)), units(ROWS, 3))
    sizes: dict[str, Any] = {"layers": 2, "dim": 8, "ffn_dim": 16, "heads": 2, "dropout": 0.0, "attention_dropout": 0.0}
    states, padding = torch.randn(ROWS, 1, 8), torch.zeros(ROWS, 1, dtype=torch.bool)
    expected = F.layer_norm(states[:, 0], (8,))
    assert torch.allclose(XProjector(**sizes, start="identity")(states, padding), expected, atol=1e-4)
    assert not torch.allclose(XProjector(**sizes)(states, padding), expected, atol=1e-2)
