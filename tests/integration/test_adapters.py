"""Adapters in a frozen student: the numbers of the released code, what is trained, and what can hold them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.formats.altclip import load_altclip
from mclip_fairseq.losses import distillation_loss
from mclip_fairseq.models.adapters import INIT_STD, add_adapters
from mclip_fairseq.storage.checkpoints import load_checkpoint
from tests.tiny_data import DIM
from tests.tiny_models import tiny_clip_directory

Train = Callable[..., str]
PARTS = {"down_proj": "down", "up_proj": "up"}


def test_states_loss_and_gradients_are_those_of_the_fixture(shared_dir: Path, tmp_path: Path) -> None:
    fixture = shared_dir / "fixtures" / "altclip"
    module: Any = load_altclip(str(fixture / "altclip_tiny"), tmp_path).module
    expected, outputs = np.load(fixture / "altclip_adapter.npz"), np.load(fixture / "altclip_outputs.npz")
    add_adapters(module.text_encoder, 64, trained=True)
    own: dict[str, Any] = {}
    for name in expected["names"]:
        layer, part, kind = name.split(".")[3], PARTS[name.split(".")[-2]], name.split(".")[-1]
        own[name] = getattr(getattr(module.text_encoder.adapters[int(layer)], part), kind)
        with torch.no_grad():
            own[name].copy_(torch.from_numpy(expected[f"weights/{name}"]))
    head = module.projection
    own |= {"transformation.weight": head.linear.weight, "transformation.bias": head.linear.bias}
    own |= {"pre_LN.weight": head.norm.weight, "pre_LN.bias": head.norm.bias}
    tokens = torch.from_numpy(outputs["input_ids"])
    real = outputs["attention_mask"].astype(bool)
    module.eval()
    for grad in (False, True):  # fairseq takes another way where no gradient is needed
        with torch.set_grad_enabled(grad):
            states = module.text_encoder(tokens).detach().numpy()
        assert np.abs(states - expected["last_hidden"])[real].max() < 2e-5
    student = module.student(tokens)
    assert np.abs(student.detach().numpy() - expected["pooled"]).max() < 2e-5
    loss = distillation_loss(student, torch.from_numpy(outputs["teacher_pooled"]), "mse")
    assert float(loss.detach()) == pytest.approx(float(expected["loss_mse"]), rel=1e-5)
    loss.backward()
    for name in expected["trainable"]:
        wanted = expected[f"grad/{name}"]
        assert np.abs(own[name].grad.numpy() - wanted).max() < 1e-5 * np.abs(wanted).max(), name
    trained = {name for name, parameter in module.text_encoder.named_parameters() if parameter.requires_grad}
    assert trained == {
        f"adapters.{layer}.{part}.{kind}" for layer in (0, 1) for part in ("down", "up") for kind in ("weight", "bias")
    }


def test_adapters_start_near_the_identity(shared_dir: Path, tmp_path: Path) -> None:
    module: Any = load_altclip(str(shared_dir / "fixtures" / "altclip" / "altclip_tiny"), tmp_path).module
    add_adapters(module.text_encoder, 64, trained=True)
    first = module.text_encoder.adapters[0]
    assert float(first.down.weight.std()) == pytest.approx(INIT_STD, rel=0.1)
    assert first.up.bias.abs().max() == 0


def test_only_adapters_and_head_are_trained_and_stored_with_the_rest(
    tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """From training to the directory; layouts of others have no place for them."""
    teacher = tiny_clip_directory(tmp_path / "teacher", dim=DIM)
    common = [
        *(tiny_corpus / "captions", "--task", "distillation", "--langs", "en,de", "--criterion", "distillation"),
        *("--image-features", tiny_corpus / "features" / "image", "--text-features", tiny_corpus / "features" / "text"),
        *("--arch", "teacher_learning_tiny", "--text-tokenizer", tiny_corpus / "tokenizer", "--adapter-dim", "8"),
        *("--optimizer", "fused_adamw", "--lr", "0.01", "--batch-size", "40", "--num-workers", "0"),
        *("--save-dir", tmp_path / "run", "--no-progress-bar", "--disable-validation"),
    ]
    run_train(*common, "--max-update", "1")
    before = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["model"]
    run_train(*common, "--max-update", "4")
    after = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["model"]
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("text_encoder.adapters.", "projection.")) for name in changed)
    checkpoint = str(tmp_path / "run" / "checkpoint_last.pt")
    command = [checkpoint, "--teacher", str(teacher), "--output"]
    assert export([*command, str(tmp_path / "m")]) == 0
    texts = ["ein Hund", "the red cat"]
    trained = MultilingualCLIP.from_pretrained(checkpoint, device="cpu", teacher=teacher).encode_text(texts)
    torch.testing.assert_close(
        MultilingualCLIP.from_pretrained(tmp_path / "m", device="cpu").encode_text(texts), trained
    )
    assert export([*command, str(tmp_path / "m-clip"), "--format", "m-clip"]) == 2
