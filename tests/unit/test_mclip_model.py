"""The dual encoder against numbers recorded from the released code, and what its checkpoints hold."""

import shutil
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.data import Dictionary

from mclip_fairseq.criterions.trikd import TriKDCriterion, TriKDCriterionConfig
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.freezing import IDENTITY, decode_identity
from mclip_fairseq.models.mclip import MCLIPModel, MCLIPModelConfig
from mclip_fairseq.models.pooling import pool_last, pool_mean
from mclip_fairseq.storage.checkpoints import allow_checkpoint_globals, load_checkpoint

allow_checkpoint_globals()
TEACHER = {"model": "teacher", "sha256": "abc"}


@pytest.fixture(scope="module")
def recorded(shared_dir: Path) -> dict[str, Any]:
    return load_checkpoint(shared_dir / "fixtures" / "mclip_tiny.pt")


@pytest.fixture(scope="module")
def dictionary(shared_dir: Path) -> Dictionary:
    return load_dictionary(shared_dir / "fixtures" / "xlmr_tiny")


def build(
    shared_dir: Path, dictionary: Dictionary, teacher: dict[str, str] | None = None, **options: Any
) -> MCLIPModel:
    values: dict[str, Any] = {
        "text_encoder": str(shared_dir / "fixtures" / "mte_tiny_extracted.pt"),
        "teacher_dim": 512,
        "projector_layers": 2,
        "projector_ffn_embed_dim": 112,
        "projector_attention_heads": 4,
    }
    cfg = MCLIPModelConfig(**{**values, **options})
    task = Namespace(source_dictionary=dictionary, needs_teacher=False, teacher_identity=teacher or TEACHER)
    return MCLIPModel.build_model(cfg, task)


@pytest.fixture
def model(shared_dir: Path, dictionary: Dictionary, recorded: dict[str, Any]) -> MCLIPModel:
    """Our model with the recorded projectors; the text encoder is the extracted one."""
    model = build(shared_dir, dictionary)
    state = model.state_dict()
    state["c_projector.weight"] = recorded["model"]["encoder.dim_proj.weight"]
    for name, tensor in recorded["model"].items():
        if name.startswith("encoder.encoder_adapter."):
            state[name.replace("encoder.encoder_adapter.", "x_projector.layers.")] = tensor
    state["logit_scale"] = recorded["criterion"]["it_logit_scale"][0]
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("lang", ["en", "cs"])
def test_text_embeddings_match(model: MCLIPModel, recorded: dict[str, Any], lang: str) -> None:
    inputs, outputs = recorded["fixture"]["inputs"], recorded["fixture"]["outputs"]
    tokens = inputs[f"text_tokens_{lang}"]
    torch.testing.assert_close(model.encode_text(tokens), outputs[f"text_embed_{lang}_norm"], rtol=1e-5, atol=1e-5)


def test_padding_side_does_not_matter(model: MCLIPModel, recorded: dict[str, Any]) -> None:
    left = recorded["fixture"]["inputs"]["text_tokens_en"]
    right = torch.stack([torch.cat([row[row != 1], row[row == 1]]) for row in left])
    assert (left == 1).any()
    torch.testing.assert_close(model.encode_text(left), model.encode_text(right), rtol=1e-5, atol=1e-5)


def test_teacher_features_match(model: MCLIPModel, recorded: dict[str, Any]) -> None:
    outputs = recorded["fixture"]["outputs"]
    images = model.encode_image(features=outputs["clip_image_cls"])
    torch.testing.assert_close(images, outputs["image_embed_norm"], rtol=1e-5, atol=1e-5)
    texts = model.project_teacher(outputs["clip_text_feature"])
    torch.testing.assert_close(texts, outputs["clip_text_embed_norm"], rtol=1e-5, atol=1e-5)


def loss_of(
    model: MCLIPModel, recorded: dict[str, Any], lang: str, criterion: TriKDCriterion, group: torch.Tensor | None = None
) -> float:
    inputs, outputs = recorded["fixture"]["inputs"], recorded["fixture"]["outputs"]
    net_input = {"text_tokens": inputs[f"text_tokens_{lang}"], "image_features": outputs["clip_image_cls"]}
    if lang == "en":
        net_input["teacher_text"] = outputs["clip_text_feature"]
    sample = {
        "net_input": net_input,
        "nsentences": 5,
        "ntokens": 50,
        "group": torch.arange(5) if group is None else group,
    }
    loss, size, _ = criterion(model, sample)
    assert size == 5
    return float(loss.detach()) / size


RELEASED = {"sim": (1.0, 0.1), "noit": (0.0, 1.0), "nott": (1.0, 0.0)}


@pytest.mark.parametrize("variant", list(RELEASED))
@pytest.mark.parametrize("lang", ["en", "cs"])
def test_released_losses_match(model: MCLIPModel, recorded: dict[str, Any], lang: str, variant: str) -> None:
    weights: dict[str, Any] = dict(zip(("image_text_weight", "text_text_weight"), RELEASED[variant], strict=True))
    criterion = TriKDCriterion(None, TriKDCriterionConfig(**weights, trikd_arithmetic="released"))
    expected = recorded["fixture"]["outputs"]["losses"][f"{lang}_{variant}"]["loss_per_token"]
    assert loss_of(model, recorded, lang, criterion) == pytest.approx(expected, rel=1e-5)


def test_released_fine_tuning_loss_matches(model: MCLIPModel, recorded: dict[str, Any]) -> None:
    criterion = TriKDCriterion(
        None, TriKDCriterionConfig(text_text_scale=100.0, positives="image", trikd_arithmetic="released")
    )
    group = recorded["fixture"]["inputs"]["coco_image_ids"].view(-1)
    expected = recorded["fixture"]["outputs"]["losses"]["en_coco"]["loss_per_token"]
    assert loss_of(model, recorded, "en", criterion, group) == pytest.approx(expected, rel=1e-5)


def test_only_projectors_and_scale_are_trained(model: MCLIPModel) -> None:
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if not name.startswith("text_encoder.")}
    model.train()
    assert model.x_projector.training
    assert not any(module.training for module in model.text_encoder.modules())


def test_a_fixed_target_is_not_trained(shared_dir: Path, dictionary: Dictionary) -> None:
    model = build(shared_dir, dictionary, fixed_target=True, projector_layers=0)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {"logit_scale"}


@pytest.mark.parametrize("teacher_dim", [48, 512])
def test_a_start_at_the_identity_is_the_teachers_space(
    shared_dir: Path, dictionary: Dictionary, teacher_dim: int
) -> None:
    """Of any width: a text encoder of the same width needs no head to reach it."""
    model = build(shared_dir, dictionary, projector_start="identity", teacher_dim=teacher_dim)
    features = torch.randn(3, teacher_dim)
    assert torch.allclose(model.project_teacher(features), torch.nn.functional.normalize(features, dim=1))
    assert model.encode_text(torch.tensor([[0, 5, 2]])).shape == (1, teacher_dim)
    assert model.dim == teacher_dim
    assert ("text_head.weight" in model.state_dict()) == (teacher_dim != model.text_encoder.dim)


def test_published_size(dictionary: Dictionary) -> None:
    """14,568,961 trained values for CLIP ViT-B/32 and XLM-R base (two layers, one linear map, one scale)."""
    from mclip_fairseq.models.projectors import XProjector, c_projector

    projector = XProjector(layers=2, dim=768, ffn_dim=3072, heads=12, dropout=0.3, attention_dropout=0.1)
    trained = [*projector.parameters(), *c_projector(512, 768).parameters(), torch.zeros(())]
    assert sum(tensor.numel() for tensor in trained) == 14_568_961


def test_checkpoint_holds_the_trained_parts_and_path_free_identities(
    model: MCLIPModel, shared_dir: Path, dictionary: Dictionary
) -> None:
    state = model.state_dict()
    assert not any(name.startswith("text_encoder.") for name in state)
    identity = decode_identity(state[IDENTITY])
    assert identity["teacher"] == TEACHER
    assert str(shared_dir) not in str(identity)
    assert len(identity["text_encoder"]["sha256"]) == 64
    whole = build(shared_dir, dictionary, save_frozen=True).state_dict()
    assert any(name.startswith("text_encoder.") for name in whole)


def test_the_same_frozen_parts_are_required(
    model: MCLIPModel, shared_dir: Path, dictionary: Dictionary, tmp_path: Path
) -> None:
    state = model.state_dict()
    moved = tmp_path / "elsewhere.pt"
    shutil.copy(shared_dir / "fixtures" / "mte_tiny_extracted.pt", moved)
    build(shared_dir, dictionary, text_encoder=str(moved)).load_state_dict(state)
    other = build(shared_dir, dictionary, text_encoder=str(shared_dir / "fixtures" / "xlmr_tiny"))
    with pytest.raises(ValueError, match="trained on text encoder"):
        other.load_state_dict(state)
    with pytest.raises(ValueError, match="trained with teacher"):
        build(shared_dir, dictionary, {"model": "teacher", "sha256": "other"}).load_state_dict(state)


def test_scale_is_clamped_and_starts_where_asked(shared_dir: Path, dictionary: Dictionary) -> None:
    model = build(shared_dir, dictionary)
    assert float(model.scale.detach()) == pytest.approx(1 / 0.07, rel=1e-5)
    model.logit_scale.data.fill_(9.0)
    assert float(model.scale.detach()) == 100.0
    model.scale.backward()
    assert model.logit_scale.grad is not None
    assert float(model.logit_scale.grad) == 0.0


def test_pooling_takes_the_last_real_token() -> None:
    states = torch.arange(24.0).view(2, 4, 3)
    padding = torch.tensor([[False, False, True, True], [True, False, False, False]])
    assert torch.equal(pool_last(states, padding), torch.stack([states[0, 1], states[1, 3]]))


def test_wrong_dictionary_is_refused(shared_dir: Path, dictionary: Dictionary) -> None:
    larger = load_dictionary(shared_dir / "fixtures" / "xlmr_tiny")
    larger.add_symbol("extra")
    with pytest.raises(ValueError, match="embedding table has 104 rows but the dictionary has 105"):
        build(shared_dir, larger)


def test_mean_pooling_leaves_pads_out() -> None:
    states = torch.arange(24.0).view(2, 4, 3)
    padding = torch.tensor([[False, False, True, True], [True, False, False, False]])
    assert torch.equal(pool_mean(states, padding), torch.stack([states[0, :2].mean(0), states[1, 1:].mean(0)]))


@pytest.mark.parametrize(("pooling", "same"), [("mean", True), ("last", False)])
def test_mean_pooling_comes_before_the_projector(
    shared_dir: Path, dictionary: Dictionary, pooling: str, same: bool
) -> None:
    """Only the mean of the states counts then; with `last` it does not, so that this can fail."""
    model = build(shared_dir, dictionary, pooling=pooling).eval()
    states = torch.randn(3, 5, model.text_encoder.dim, generator=torch.Generator().manual_seed(1))
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2, [True] + [False] * 4])
    whole = model.encode_text(states=states, padding=padding)
    mean = model.encode_text(states=pool_mean(states, padding)[:, None], padding=torch.zeros(3, 1, dtype=torch.bool))
    assert torch.allclose(whole, mean, atol=1e-6) is same


def test_half_precision_logs_a_finite_scale(model: MCLIPModel, recorded: dict[str, Any]) -> None:
    """Of a batch whose rows times the scale are beyond the largest number of float16."""
    inputs, outputs = recorded["fixture"]["inputs"], recorded["fixture"]["outputs"]
    rows = 2000
    sample = {
        "net_input": {
            "text_tokens": inputs["text_tokens_en"][:1].expand(rows, -1),
            "image_features": outputs["clip_image_cls"][:1].expand(rows, -1),
        },
        "nsentences": rows,
        "ntokens": rows,
        "group": torch.arange(rows),
    }
    model.half().logit_scale.data.fill_(4.0)
    assert torch.isinf(model.logit_scale.detach().exp() * rows)
    _, _, logged = TriKDCriterion(None, TriKDCriterionConfig())(model.train(), sample)
    assert float(logged["scale"]) == pytest.approx(float(model.scale.detach()) * rows)
