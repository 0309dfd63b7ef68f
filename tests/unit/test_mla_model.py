"""The model `mla` against numbers of the released code, and what training it leaves alone."""

from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq.formats.mla import to_published
from mclip_fairseq.losses import global_distillation_loss, symmetric_info_nce
from mclip_fairseq.models.acquirers import block_states
from mclip_fairseq.models.mla import MLAModel
from mclip_fairseq.models.mla_options import MLAModelConfig
from mclip_fairseq.models.mla_parts import text_tower
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.text_layers import LayerStates, split_layers
from tests.mla_fixture import build, load

LANGS = ("de", "fr", "zh")
CLOSE: dict[str, Any] = {"rtol": 0.0, "atol": 2e-5}


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> dict[str, Any]:
    return load(shared_dir)


@pytest.fixture
def model(fixture: dict[str, Any]) -> MLAModel:
    return build(fixture["model"]).eval()


@torch.no_grad()
def test_features_are_those_of_the_released_code(fixture: dict[str, Any], model: MLAModel) -> None:
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    images = model.encode_image(inputs["pixels"])
    torch.testing.assert_close(images, torch.nn.functional.normalize(outputs["image_features"], dim=1), **CLOSE)
    torch.testing.assert_close(model.text_features(inputs["clip_ids"], "en"), outputs["text_features_en"], **CLOSE)
    for lang in LANGS:
        features = model.text_features(inputs[f"mbert_ids_{lang}"], lang)
        torch.testing.assert_close(features, outputs[f"text_features_{lang}"], **CLOSE)


@torch.no_grad()
def test_states_after_each_block_are_those_of_the_released_code(fixture: dict[str, Any], model: MLAModel) -> None:
    text_model, _ = text_tower(model.clip)
    tokens = fixture["inputs"]["mbert_ids_de"][:3]
    embedded = model.embedding_linear(model.embedding(tokens))
    expected = fixture["outputs"]["hidden_states_de"]
    states = list(block_states(text_model, embedded, list(model.acquirers["de"].children())))
    for state, wanted in zip(states, expected[1:], strict=True):
        torch.testing.assert_close(state, wanted, **CLOSE)


@torch.no_grad()
def test_what_follows_the_end_of_a_text_does_not_count(fixture: dict[str, Any], model: MLAModel) -> None:
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    for lang in LANGS:
        junk = model.text_features(inputs[f"mbert_ids_{lang}_junk_after_sep"], lang)
        torch.testing.assert_close(junk, outputs[f"text_features_{lang}"], **CLOSE)
        # Of two ends, the first one counts; the released code stops there or gives two vectors.
        twice = model.text_features(inputs[f"mbert_ids_{lang}_double_sep"], lang)
        torch.testing.assert_close(twice[0], outputs[f"text_features_{lang}_double_sep_alone"][0], **CLOSE)


@torch.no_grad()
def test_padding_to_77_is_not_needed(fixture: dict[str, Any], model: MLAModel) -> None:
    tokens = fixture["inputs"]["mbert_ids_de"][[0, 2, 4]]
    torch.testing.assert_close(model.text_features(tokens[:, :16], "de"), model.text_features(tokens, "de"), **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_every_attention_is_causal(fixture: dict[str, Any], model: MLAModel, attention: str) -> None:
    model.clip.set_attn_implementation(attention)
    features = model.text_features(fixture["inputs"]["mbert_ids_fr"], "fr")
    torch.testing.assert_close(features, fixture["outputs"]["text_features_fr"], **CLOSE)


@torch.no_grad()
def test_english_is_clip_bit_for_bit(fixture: dict[str, Any], model: MLAModel) -> None:
    ids = fixture["inputs"]["clip_ids"]
    plain = model.clip.get_text_features(input_ids=ids).pooler_output
    assert torch.equal(model.text_features(ids, "en"), plain)
    torch.testing.assert_close(plain, fixture["outputs"]["text_features_en_plain_clip"], **CLOSE)


@torch.no_grad()
def test_without_acquirers_only_the_words_tell_a_language(fixture: dict[str, Any], model: MLAModel) -> None:
    """`--acquirer-dim 0`, the released option `skip`."""
    cfg = MLAModelConfig(**{**vars(model.cfg), "acquirer_dim": 0, "train_langs": ""})
    bare = MLAModel(cfg, DualEncoderTeacher(model.clip, model.transform.processor, None, "clip", None)).eval()
    bare.load_state_dict({name: weight for name, weight in model.own_weights().items() if "acquirers" not in name})
    assert not list(bare.acquirers.parameters())
    for lang in LANGS:
        features = bare.text_features(fixture["inputs"][f"mbert_ids_{lang}"], lang)
        torch.testing.assert_close(features, fixture["outputs"][f"text_features_{lang}_skip"], **CLOSE)


@torch.no_grad()
def test_acquirers_over_clips_own_table(fixture: dict[str, Any], model: MLAModel) -> None:
    """A file made without `new_embed`: all languages have CLIP's ids and are pooled at its end token."""
    state = {name: weight for name, weight in fixture["model"].items() if "multilingual_embedding" not in name}
    own = build(state).eval()
    assert own.cfg.clip_embedding
    assert {name.split(".")[0] for name in own.own_weights()} == {"clip", "acquirers"}
    ids = fixture["inputs"]["clip_ids"]
    for lang in LANGS:
        features = own.text_features(ids, lang)
        torch.testing.assert_close(features, fixture["outputs"][f"text_features_{lang}_clip_bpe"], **CLOSE)
    assert torch.equal(own.text_features(ids, "en"), model.text_features(ids, "en"))
    assert to_published(own).keys() == {name for name in state if ".ln." not in name or "acquirer" not in name}


@torch.no_grad()
def test_states_of_layers_are_those_of_the_released_code(fixture: dict[str, Any], model: MLAModel) -> None:
    """`kd_layers`: raw states at the end of the text, and the features for the last layer, on both sides."""
    inputs, outputs = fixture["inputs"], fixture["outputs"]
    *layers, last = outputs["kd_layers"]
    assert (layers, last) == ([0, 1], 3)
    states, features = model.layers_and_features(inputs["mbert_ids_de"], "de", layers)
    own = [*states, features]
    teacher = DualEncoderTeacher(model.clip, model.transform.processor, None, "clip", None)
    english = LayerStates(teacher, ",".join(map(str, layers)))(inputs["clip_ids"])
    assert english.shape[1] == LayerStates(teacher, "0,1").dim
    given = split_layers(english, layers, model.dim)
    for got, wanted in zip(own, outputs["kd_features_single_acquirer"], strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)
    for got, wanted in zip([*given[0], given[1]], outputs["kd_features_en"], strict=True):
        torch.testing.assert_close(got, wanted, **CLOSE)


def losses(model: MLAModel, fixture: dict[str, Any], name: str) -> torch.Tensor:
    """One of the released losses on the fixture's rows."""
    inputs, rows, lang = fixture["inputs"], fixture["losses"]["rows"], name.split("_")[-1]
    ids = inputs["clip_ids" if lang == "en" else f"mbert_ids_{lang}"][rows]
    if name.startswith("nlt"):
        with torch.no_grad():
            teacher = model.encode_clip_text(inputs["clip_ids"][rows])
        out = model(ids, lang, teacher_text=teacher)
        return torch.nn.functional.mse_loss(out["student"], teacher)
    out = model(ids, lang, pixel_values=inputs["pixels"][rows])
    if "itm_mse" in name:
        return global_distillation_loss(out["student"], out["image_features"], "mse", gather=False)
    return symmetric_info_nce(out["text"], out["image"], out["scale"])


@pytest.mark.parametrize(
    "name",
    ["nlt_mse_de", "nlt_mse_fr", "le_itm_nce_de", "le_itm_nce_fr", "le_itm_mse_de", "finetune_en", "finetune_all_de"],
)
def test_losses_and_gradients_are_those_of_the_released_code(fixture: dict[str, Any], name: str) -> None:
    parts = "acquirers,embedding,linear" + (",clip" if name.startswith("finetune") else "")
    model = build(fixture["model"], train_parts=parts).train()
    expected = fixture["losses"][name]
    loss = losses(model, fixture, name)
    logged = expected["losses"]["loss"]
    torch.testing.assert_close(loss.detach(), torch.tensor(logged), rtol=1e-5, atol=1e-6)
    loss.backward()
    gradients = {n: p.grad if p.grad is not None else torch.zeros_like(p) for n, p in model.named_parameters()}
    own = to_published(model, gradients)
    compared = expected["grad"] | expected.get("grad_body", {})
    assert len(compared) > 3
    for parameter, gradient in compared.items():
        atol = 1e-4 * float(gradient.abs().max())
        torch.testing.assert_close(own[parameter].view_as(gradient), gradient, rtol=0, atol=atol, msg=parameter)
