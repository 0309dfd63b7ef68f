"""The translation model against numbers recorded from the released code."""

from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator

from mclip_fairseq.cli.convert import main as convert
from mclip_fairseq.criterions.mte import MTECriterion
from mclip_fairseq.data.tokens import load_dictionary
from mclip_fairseq.models.mte import MTEModel, MTEModelConfig
from mclip_fairseq.storage.checkpoints import allow_checkpoint_globals, load_checkpoint
from mclip_fairseq.tasks.mte import MTETask, MTETaskConfig

allow_checkpoint_globals()


@pytest.fixture(scope="module")
def recorded(shared_dir: Path) -> dict[str, Any]:
    return load_checkpoint(shared_dir / "fixtures" / "mte_tiny.pt")


@pytest.fixture(scope="module")
def dictionary(shared_dir: Path) -> Dictionary:
    return load_dictionary(shared_dir / "fixtures" / "xlmr_tiny")


@pytest.fixture
def model(dictionary: Dictionary, shared_dir: Path, tmp_path: Path) -> MTEModel:
    """The converted checkpoint as fairseq loads it, with stage 2's freezing and no dropout."""
    fixtures = shared_dir / "fixtures"
    arguments = [str(fixtures / "mte_tiny.pt"), "--xlmr", str(fixtures / "xlmr_tiny"), "--output", str(tmp_path / "m")]
    assert convert(["translation", *arguments]) == 0
    task = MTETask(MTETaskConfig(langs="en,de,cs"), dictionary)
    (model,), _ = load_model_ensemble([str(tmp_path / "m" / "checkpoint.pt")], task=task)
    model.encoder.xlmr.freeze("embeddings")
    return model.eval()


def test_encoder_and_decoder_match(model: MTEModel, recorded: dict[str, Any]) -> None:
    inputs, outputs = recorded["fixture"]["inputs"], recorded["fixture"]["outputs"]
    states = model.encoder.xlmr(inputs["src_tokens"])
    real = inputs["src_tokens"] != 1
    torch.testing.assert_close(states[real], outputs["xlmr_features"][real], rtol=1e-5, atol=2e-5)
    for lang in range(4):
        lang_id = torch.full((5,), lang)
        encoded = model.encoder(inputs["src_tokens"], tgt_lang_id=lang_id)["encoder_out"][0]
        expected = outputs[f"encoder_out_lang_{lang}"]
        torch.testing.assert_close(encoded.transpose(0, 1)[real], expected.transpose(0, 1)[real], rtol=1e-5, atol=2e-5)
        sources = (inputs["src_tokens"], inputs["src_lengths"])
        logits, _ = model(*sources, inputs["prev_output_tokens"], tgt_lang_id=lang_id)
        kept = inputs["target"] != 1
        torch.testing.assert_close(logits[kept], outputs[f"logits_lang_{lang}"][kept], rtol=1e-5, atol=5e-5)


def test_rows_of_several_languages_are_projected_each_by_its_own(model: MTEModel, recorded: dict[str, Any]) -> None:
    tokens = recorded["fixture"]["inputs"]["src_tokens"]
    mixed = model.encoder(tokens, tgt_lang_id=torch.tensor([1, 2, 3, 0, 2]))["encoder_out"][0]
    for row, lang in enumerate([1, 2, 3, 0, 2]):
        alone = model.encoder(tokens, tgt_lang_id=torch.full((5,), lang))["encoder_out"][0]
        torch.testing.assert_close(mixed[:, row], alone[:, row])


def criterion(dictionary: Dictionary, weight: float, arithmetic: str) -> MTECriterion:
    return MTECriterion(Namespace(target_dictionary=dictionary), 0.1, 1.0, weight, 0.1, arithmetic)


@pytest.mark.parametrize("weight", [1.0, 2.0, 3.0])
def test_released_stage_two_loss_matches(
    model: MTEModel, recorded: dict[str, Any], dictionary: Dictionary, weight: float
) -> None:
    """Total = smoothed cross entropy + weight x contrast x tokens / sentences, gradients included."""
    inputs, outputs = recorded["fixture"]["inputs"], recorded["fixture"]["outputs"]
    net_input = {name: inputs[name] for name in ("src_tokens", "src_lengths", "prev_output_tokens", "tgt_lang_id")}
    net_input["tgt_lang_id"] = net_input["tgt_lang_id"].view(-1)
    sample = {"net_input": net_input, "target": inputs["target"], "ntokens": inputs["ntokens"], "nsentences": 5}
    loss, size, logged = criterion(dictionary, weight, "released")(model, sample)
    assert size == inputs["ntokens"]
    assert float(loss.detach()) == pytest.approx(outputs["total"][weight]["loss_sum"], rel=1e-5)
    assert float(logged["nll_loss"]) == pytest.approx(outputs["nll_sum"], rel=1e-5)
    if weight == 2.0:
        loss.backward()
        compare_gradients(model, outputs)


def compare_gradients(model: MTEModel, outputs: dict[str, Any]) -> None:
    compared = 0
    for name, expected in outputs["grad_sum_loss_lambda2"].items():
        ours = name.replace("encoder.xlmr.model.encoder.", "encoder.xlmr.encoder.")
        if ".lang_proj." in name:
            _, _, row, kind = name.split(".")
            gradient = getattr(model.encoder.lang_proj, kind).grad[int(row)]
        else:
            gradient = model.get_parameter(ours).grad
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=2e-4)
        compared += 1
    assert compared == len(outputs["grad_sum_loss_lambda2"])


def test_default_loss_differs_from_the_released_one(
    model: MTEModel, recorded: dict[str, Any], dictionary: Dictionary
) -> None:
    inputs, outputs = recorded["fixture"]["inputs"], recorded["fixture"]["outputs"]
    net_input = {name: inputs[name] for name in ("src_tokens", "src_lengths", "prev_output_tokens", "tgt_lang_id")}
    net_input["tgt_lang_id"] = net_input["tgt_lang_id"].view(-1)
    sample = {"net_input": net_input, "target": inputs["target"], "ntokens": inputs["ntokens"], "nsentences": 5}
    loss, _, logged = criterion(dictionary, 2.0, "sound")(model, sample)
    assert float(loss.detach()) != pytest.approx(outputs["total"][2.0]["loss_sum"], rel=1e-3)
    weighted = 2.0 * float(logged["contrastive_loss"])
    plain, _, _ = criterion(dictionary, 0.0, "sound")(model, sample)
    assert float(loss.detach()) - float(plain.detach()) == pytest.approx(weighted, rel=1e-5)


@pytest.mark.parametrize("lang", [1, 2])
def test_beam_search_matches(model: MTEModel, recorded: dict[str, Any], dictionary: Dictionary, lang: int) -> None:
    inputs = recorded["fixture"]["inputs"]
    generator = SequenceGenerator([model], dictionary, beam_size=4, max_len_a=1.0, max_len_b=6)
    net_input = {
        "src_tokens": inputs["src_tokens"],
        "src_lengths": inputs["src_lengths"],
        "tgt_lang_id": torch.full((5,), lang),
    }
    hypotheses = generator.generate([model], {"net_input": net_input})
    for ours, theirs in zip(hypotheses, recorded["fixture"]["outputs"][f"beam4_lang_{lang}"], strict=True):
        assert ours[0]["tokens"].tolist() == theirs[0]["tokens"].tolist()
        assert float(ours[0]["score"]) == pytest.approx(theirs[0]["score"], abs=1e-4)


@pytest.mark.parametrize("freeze", ["encoder", "embeddings", "none"])
def test_freezing_survives_train_and_has_no_dropout(shared_dir: Path, dictionary: Dictionary, freeze: str) -> None:
    cfg = MTEModelConfig(
        text_encoder=str(shared_dir / "fixtures" / "xlmr_tiny"), freeze_text=freeze, decoder_layers=1, dropout=0.5
    )
    cfg.decoder_ffn_embed_dim, cfg.decoder_attention_heads = 48, 4
    task = Namespace(source_dictionary=dictionary, target_dictionary=dictionary, langs=["en"])
    model = MTEModel.build_model(cfg, task)
    model.train()
    tokens = torch.tensor([[0, 5, 6, 7, 2]])
    same = torch.equal(model.encoder.xlmr(tokens), model.encoder.xlmr(tokens))
    assert same == (freeze == "encoder")
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "decoder.layers.0.fc1.weight" in trained
    assert any("sentence_encoder.layers" in name for name in trained) == (freeze != "encoder")
    assert any("embed" in name and "sentence_encoder" in name for name in trained) == (freeze == "none")
    assert model.decoder.output_projection.weight is model.encoder.xlmr.embed_tokens.weight
