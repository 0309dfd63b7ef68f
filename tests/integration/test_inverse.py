"""AltCLIP's variant `invert`: the numbers of the released code, and a run from training to the directory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.formats.altclip import load_altclip
from mclip_fairseq.losses import distillation_loss, symmetric_info_nce
from mclip_fairseq.models.inverse import InverseTower
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.xlmr_transformers import LAYER
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.features import write_features
from tests.tiny_data import sentences
from tests.tiny_models import tiny_clip_directory

Train = Callable[..., str]
TEXTS = ["ein Hund", "the red cat", "un chien bleu, deux chats"]


@pytest.fixture
def published(shared_dir: Path, tmp_path: Path) -> tuple[Any, Any, Any]:
    """The model of the fixture, the fixture, and the outputs of the plain variant."""
    folder = shared_dir / "fixtures" / "altclip"
    expected = np.load(folder / "altclip_invert.npz")
    module: Any = load_altclip(str(folder / "altclip_tiny"), tmp_path).module
    teacher = DualEncoderTeacher.from_pretrained(folder / "clip_teacher_tiny")
    module.inverse = InverseTower.copy(teacher, 3, 0.1, 0.1)
    module.projection = module.projection.linear  # the LayerNorm before it plays no part in this variant
    for number, layer in enumerate(module.inverse.layers):
        names = {f"{ours}.{end}": f"{theirs}.{end}" for ours, theirs in LAYER.items() for end in ("weight", "bias")}
        layer.load_state_dict(
            {ours: torch.from_numpy(expected[f"inverse_tfm.layer.{number}.{name}"]) for ours, name in names.items()}
        )
    return module.eval(), expected, np.load(folder / "altclip_outputs.npz")


def test_states_are_those_of_the_fixture(published: tuple[Any, Any, Any]) -> None:
    module, expected, _ = published
    tokens, real = torch.from_numpy(expected["input_ids"]), expected["attention_mask"].astype(bool)
    with torch.no_grad():
        states = module.projection(module.text_encoder(tokens))
        pooled, text = module.student(tokens), module.text_projection(module.student(tokens))
        portable = module.portable_text()(tokens)
    assert np.abs(states.numpy() - expected["projection_state"])[real].max() < 2e-5
    assert np.abs(pooled.numpy() - expected["pooled"]).max() < 2e-5
    assert np.abs(text.numpy() - expected["text_features"]).max() < 2e-5
    torch.testing.assert_close(portable, module.encode_text(tokens), rtol=0, atol=2e-5)


def test_losses_and_gradients_are_those_of_the_fixture(published: tuple[Any, Any, Any]) -> None:
    module, expected, outputs = published
    tokens = torch.from_numpy(expected["input_ids"])
    loss = distillation_loss(module.student(tokens), torch.from_numpy(expected["teacher_pooled"]), "mse")
    assert float(loss.detach()) == pytest.approx(float(expected["loss_mse"]), rel=1e-5)
    loss.backward()
    layers = module.inverse.layers
    ours = {
        "inverse_tfm.layer.0.attention.self.query.weight": layers[0].self_attn.q_proj.weight,
        "inverse_tfm.layer.2.output.dense.weight": layers[2].fc2.weight,
        "inverse_tfm.layer.2.output.LayerNorm.weight": layers[2].final_layer_norm.weight,
        "text_model.transformation.weight": module.projection.weight,
        "text_model.roberta.embeddings.word_embeddings.weight": module.text_encoder.embed_tokens.weight,
    }
    assert {name.removeprefix("grad_mse/") for name in expected.files if name.startswith("grad_mse/")} == ours.keys()
    for name, weight in ours.items():
        wanted = expected[f"grad_mse/{name}"]
        assert np.abs(weight.grad.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max(), name
    assert all(weight.grad is None for weight in module.inverse.text.parameters())
    with torch.no_grad():
        image = torch.nn.functional.normalize(torch.from_numpy(outputs["image_features"]), dim=1)
        logits = module.scale * module.encode_text(tokens) @ image.T
    assert np.abs(logits.numpy() - expected["stage2_logits_per_text"]).max() < 1e-4
    # The released code contrasts text -> image alone.
    loss = torch.nn.functional.cross_entropy(logits, torch.arange(len(logits)))
    assert float(loss) == pytest.approx(float(expected["stage2_loss"]), rel=1e-5)
    assert float(symmetric_info_nce(module.encode_text(tokens), image, module.scale).detach()) != pytest.approx(
        float(loss), rel=1e-3
    )


@pytest.fixture
def command(tiny_corpus: Path, tmp_path: Path) -> list[str]:
    """fairseq-train's command line of the first stage with a teacher whose texts are 32 wide."""
    folder = tiny_clip_directory(tmp_path / "teacher", dim=12)
    model = DualEncoderTeacher.from_pretrained(folder)
    texts = model.pooled_text(**model.tokenize(sentences("en"))).numpy()
    ids = (tiny_corpus / "features" / "text" / "ids.txt").read_text().splitlines()
    write_features(
        *(tmp_path / "text", ids, texts[: len(ids)]),
        model=model.identity,
        modality="text",
        normalized=False,
        projection=model.projection("text"),
    )
    ids = [f"img{number}" for number in range(40)]
    write_features(tmp_path / "image", ids, torch.rand(40, 12).numpy(), model=model.identity, normalized=False)
    values = [
        *(tiny_corpus / "captions", "--task", "distillation", "--langs", "en,de", "--criterion", "distillation"),
        *("--arch", "altclip_tiny", "--student-head", "linear", "--inverse-layers", "3", "--dropout", "0.1"),
        *("--text-tokenizer", tiny_corpus / "tokenizer", "--text-features", tmp_path / "text"),
        *("--image-features", tmp_path / "image", "--optimizer"),
        *("fused_adamw", "--lr", "0.003", "--batch-size", "40", "--num-workers", "0", "--no-progress-bar"),
        *("--disable-validation", "--no-epoch-checkpoints", "--max-caption-tokens", "60"),
    ]
    return [str(value) for value in values]


def test_it_trains_resumes_exactly_and_goes_out(command: list[str], run_train: Train, tmp_path: Path) -> None:
    teacher = str(tmp_path / "teacher")
    for name, updates in (("whole", 4), ("parts", 2), ("parts", 4)):
        more = ("--teacher", teacher, "--save-dir", str(tmp_path / name), "--max-update", str(updates))
        run_train(*command, *more)
    whole, parts = (load_checkpoint(tmp_path / name / "checkpoint_last.pt")["model"] for name in ("whole", "parts"))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    text = DualEncoderTeacher.from_pretrained(teacher).model.text_model.state_dict()
    stored = {name: weight for name, weight in whole.items() if name.startswith("inverse.text.")}
    assert stored
    assert all(torch.equal(weight, text[name.removeprefix("inverse.text.")]) for name, weight in stored.items())
    checkpoint = str(tmp_path / "whole" / "checkpoint_last.pt")
    assert export([checkpoint, "--teacher", teacher, "--output", str(tmp_path / "m")]) == 0
    trained = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=teacher)
    again = MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")
    torch.testing.assert_close(again.encode_text(TEXTS), trained.encode_text(TEXTS))
    tokens = trained.tokenizer(TEXTS)
    left = torch.stack([torch.cat([row[row == 1], row[row != 1]]) for row in tokens])
    torch.testing.assert_close(trained.encode_text(left), trained.encode_text(TEXTS), rtol=0, atol=1e-5)
    published = [checkpoint, "--teacher", teacher, "--format", "altclip", "--output", str(tmp_path / "published")]
    assert export(published) == 2


def test_it_needs_the_teacher_and_no_longer_texts_than_that_reads(
    command: list[str], run_train: Train, tmp_path: Path
) -> None:
    more = ["--save-dir", str(tmp_path / "run"), "--max-update", "1"]
    with pytest.raises(ValueError, match="--inverse-layers needs --teacher"):
        run_train(*command, *more)
    longer = [*command[:-2], "--max-caption-tokens", "78"]
    with pytest.raises(ValueError, match="takes at most 77 tokens"):
        run_train(*longer, "--teacher", str(tmp_path / "teacher"), *more)
