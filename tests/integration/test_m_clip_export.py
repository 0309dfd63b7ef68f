"""M-CLIP: heads and pooling, directories as the authors save them, and a trained text encoder that goes out as one."""

import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.convert import main as convert
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.losses import distillation_loss
from mclip_fairseq.models.pooling import POOLING
from mclip_fairseq.models.student_heads import student_head
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.tiny_data import DIM
from tests.tiny_models import tiny_clip_directory

Train = Callable[..., str]
TEXTS = ["ein Hund", "the red cat", "un chien bleu, deux chats"]


@pytest.fixture(params=["config.json", "config_constructor_names.json"])
def published(request: pytest.FixtureRequest, shared_dir: Path, tmp_path: Path) -> Path:
    """A small text encoder as the authors' class saves it, and with the names of the constructor."""
    source, folder = shared_dir / "fixtures" / "altclip" / "mclip_text_tiny", tmp_path / "published"
    shutil.copytree(source, folder)
    config = json.loads((source / request.param).read_text())
    (folder / "config.json").write_text(json.dumps(config | {"modelBase": "base"}))
    return folder


def options(corpus: Path, folder: Path, *more: object) -> list[str]:
    """fairseq-train's command line, from text alone."""
    values = [
        *(corpus / "captions", "--task", "distillation", "--langs", "en,de,fr", "--criterion", "distillation"),
        *("--image-features", corpus / "features" / "image", "--text-features", corpus / "features" / "text"),
        *("--arch", "teacher_learning_tiny", "--text-tokenizer", corpus / "tokenizer", "--optimizer", "fused_adamw"),
        *("--lr", "0.005", "--batch-size", "40", "--num-workers", "0", "--save-dir", folder, "--no-progress-bar"),
        *("--disable-validation", "--no-epoch-checkpoints", *more),
    ]
    return [str(value) for value in values]


def test_the_hub_directory_loads(published: Path, shared_dir: Path) -> None:
    """Under the names that the class saves (numDims) and those of its constructor (imageDimSize)."""
    model = MultilingualCLIP.from_pretrained(published, device="cpu")
    expected = np.load(shared_dir / "fixtures" / "altclip" / "mclip_outputs.npz")
    texts = [str(text) for text in expected["texts"]]
    assert np.abs(model.encode_text(texts, normalize=False).numpy() - expected["embedding"]).max() < 2e-5


def test_the_error_and_gradients_of_the_tower_are_those_of_the_fixture(published: Path, shared_dir: Path) -> None:
    model = MultilingualCLIP.from_pretrained(published, device="cpu")
    expected = np.load(shared_dir / "fixtures" / "altclip" / "mclip_outputs.npz")
    tower: Any = model.tower.module["text"].requires_grad_(True)
    inputs = [torch.from_numpy(expected[name]) for name in ("input_ids", "attention_mask")]
    with torch.no_grad():  # as padded in the authors' training, with 0 instead of the pad
        padded = tower(*(torch.from_numpy(expected[f"{name}_pad0"]) for name in ("input_ids", "attention_mask")))
    assert np.abs(padded.numpy() - expected["embedding_pad0"]).max() < 2e-5
    loss = distillation_loss(tower(*inputs), torch.from_numpy(expected["teacher_embeddings"]), "mse")
    assert float(loss.detach()) == pytest.approx(float(expected["tower_mse"]), rel=1e-5)
    loss.backward()
    parameters = dict(tower.named_parameters())
    names = [name for name in expected.files if name.startswith("tower_grad/")]
    assert len(names) == 4
    for name in names:
        gradient = parameters[name.removeprefix("tower_grad/")].grad.numpy()
        assert np.abs(gradient - expected[name]).max() < 1e-5 * np.abs(expected[name]).max(), name


def test_a_trained_text_encoder_goes_out_as_m_clip(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """A class of the published layout loads it strictly; so does this project; the embeddings are equal."""
    shield_torchaudio()
    from transformers import AutoModel, AutoTokenizer

    teacher = tiny_clip_directory(tmp_path / "teacher", dim=DIM)
    run_train(*options(tiny_corpus, tmp_path / "run", "--max-update", "3"))
    checkpoint, output = tmp_path / "run" / "checkpoint_last.pt", tmp_path / "m"
    command = [str(checkpoint), "--teacher", str(teacher), "--format", "m-clip", "--output", str(output)]
    assert export(command) == export(command) == 0  # the second call finds it done
    config = json.loads((output / "config.json").read_text())
    assert (config["numDims"], config["transformerDimensions"], config["modelBase"]) == (DIM, 32, "base")

    class Published(nn.Module):
        """The layout of the published class: a base model with its pooler, and a linear layer."""

        def __init__(self) -> None:
            super().__init__()
            self.transformer = AutoModel.from_pretrained(output / config["modelBase"])
            self.LinearTransformation = nn.Linear(config["transformerDimensions"], config["numDims"])

    module = Published()
    module.load_state_dict(torch.load(output / "pytorch_model.bin", weights_only=True), strict=True)
    inputs = AutoTokenizer.from_pretrained(output)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        states = module.eval().transformer(**inputs).last_hidden_state
        mask = inputs["attention_mask"][:, :, None]
        embedding = module.LinearTransformation((states * mask).sum(1) / mask.sum(1))
    ours = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=teacher)
    expected = ours.tower.module.student(ours.tokenizer(TEXTS)).detach()
    torch.testing.assert_close(embedding, expected, rtol=0, atol=2e-5)
    again = MultilingualCLIP.from_pretrained(output, device="cpu")
    torch.testing.assert_close(again.encode_text(TEXTS), ours.encode_text(TEXTS), rtol=0, atol=2e-5)


@pytest.mark.parametrize(("pooling", "head"), [("first", "norm_linear"), ("last", "tanh")])
def test_other_heads_train_and_go_out(
    pooling: str, head: str, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """Into this project's directory, with ONNX's modules equal to the model; not into M-CLIP's."""
    teacher = tiny_clip_directory(tmp_path / "teacher", dim=DIM)
    layout = ("--pooling", pooling, "--student-head", head, "--max-update", "3")
    run_train(*options(tiny_corpus, tmp_path / "run", *layout))
    checkpoint = tmp_path / "run" / "checkpoint_last.pt"
    assert ("projection.weight" in load_checkpoint(checkpoint)["model"]) is False
    command = [str(checkpoint), "--teacher", str(teacher), "--output"]
    assert export([*command, str(tmp_path / "m")]) == 0
    trained = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=teacher)
    again = MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")
    torch.testing.assert_close(again.encode_text(TEXTS), trained.encode_text(TEXTS))
    module: Any = trained.tower.module
    with torch.no_grad():
        portable = module.portable_text()(trained.tokenizer(TEXTS))
    torch.testing.assert_close(portable, trained.encode_text(TEXTS), rtol=0, atol=2e-5)
    assert export([*command, str(tmp_path / "published"), "--format", "m-clip"]) == 2


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_legacy_head_is_joined_with_its_encoder(suffix: str, shared_dir: Path, tmp_path: Path) -> None:
    fixture = shared_dir / "fixtures" / "altclip"
    expected = np.load(fixture / "mclip_outputs.npz")
    head = tmp_path / f"head.{suffix}"
    if suffix == "npz":
        np.savez(head, W=expected["legacy_W"], b=expected["legacy_b"])
    else:
        save_file({"W": torch.from_numpy(expected["legacy_W"]), "b": torch.from_numpy(expected["legacy_b"])}, head)
    command = ["m-clip", str(fixture / "mclip_legacy_tiny"), "--head", str(head), "--output", str(tmp_path / "m")]
    assert convert(command) == convert(command) == 0  # the second call finds it done
    model = MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu")
    texts = [str(text) for text in expected["texts"]]
    assert np.abs(model.encode_text(texts, normalize=False).numpy() - expected["legacy_embedding"]).max() < 2e-5


def test_a_legacy_head_that_is_a_pickle_or_does_not_fit_is_refused(
    shared_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trap = tmp_path / "ran"

    class Trap:
        """Runs when it is unpickled."""

        def __reduce__(self) -> Any:
            return Path.touch, (trap,)

    encoder = str(shared_dir / "fixtures" / "altclip" / "mclip_legacy_tiny")
    (tmp_path / "head.npz").write_bytes(pickle.dumps([Trap()]))
    command = ["m-clip", encoder, "--output", str(tmp_path / "m"), "--head"]
    assert convert([*command, str(tmp_path / "head.npz")]) == 2
    assert "cannot be read as .npz or .safetensors" in capsys.readouterr().err
    assert not trap.exists()
    np.savez(tmp_path / "small.npz", W=np.zeros((3, 2), np.float32), b=np.zeros(2, np.float32))
    assert convert([*command, str(tmp_path / "small.npz")]) == 2
    assert "but the encoder has 40 columns" in capsys.readouterr().err
    np.savez(tmp_path / "other.npz", V=np.zeros((3, 2)))
    assert convert([*command, str(tmp_path / "other.npz")]) == 2
    assert "holds no matrix W and vector b" in capsys.readouterr().err


def test_heads_compute_what_they_say() -> None:
    pooled = torch.randn(3, 8)
    tanh: Any = student_head("tanh", 8, 5)
    expected = torch.tanh(pooled @ tanh.hidden.weight.T + tanh.hidden.bias) @ tanh.linear.weight.T + tanh.linear.bias
    torch.testing.assert_close(tanh(pooled), expected)
    norm: Any = student_head("norm_linear", 8, 5)
    standard = (pooled - pooled.mean(1, keepdim=True)) / (pooled.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
    torch.testing.assert_close(norm(pooled), standard @ norm.linear.weight.T + norm.linear.bias)
    assert isinstance(student_head("linear", 8, 5), nn.Linear)
    two: Any = student_head("linear_2", 8, 5)
    torch.testing.assert_close(two(pooled), pooled @ (two.linear.weight @ two.hidden[0].weight).T + two(torch.zeros(8)))
    four: Any = student_head("linear_4", 8, 5)
    assert [tuple(layer.weight.shape) for layer in (*four.hidden, four.linear)] == [(8, 8)] * 3 + [(5, 8)]


def test_pooling_ignores_padding_on_either_side() -> None:
    states = torch.arange(12.0).reshape(1, 4, 3).repeat(2, 1, 1)
    padding = torch.tensor([[False, False, False, True], [True, False, False, False]])
    assert POOLING["first"](states, padding).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert POOLING["last"](states, padding).tolist() == [[6, 7, 8], [9, 10, 11]]
    assert POOLING["mean"](states, padding).tolist() == [[3, 4, 5], [6, 7, 8]]
