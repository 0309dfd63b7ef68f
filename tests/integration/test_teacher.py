"""The teacher gives what `transformers` gives when called directly, stays frozen, and is named without paths."""

from __future__ import annotations

import copy
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.models.teacher import DualEncoderTeacher
from tests.tiny_models import tiny_clip_directory, tiny_dual_encoder_directory

TEXTS = ["a photo of a dog", "the small red house", "cat"]


def picture(seed: int, width: int = 50, height: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    return {"clip": tiny_clip_directory(root / "clip"), "dual": tiny_dual_encoder_directory(root / "dual")}


@pytest.fixture(scope="module", params=["clip", "dual"])
def loaded(request: pytest.FixtureRequest, folders: dict[str, Path]) -> tuple[Path, DualEncoderTeacher]:
    return folders[request.param], DualEncoderTeacher.from_pretrained(folders[request.param])


def directly(folder: Path) -> tuple[Any, Any, Any]:
    """Model, image processor and tokenizer without any of our code."""
    shield_torchaudio()
    from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

    model = AutoModel.from_pretrained(folder).eval()
    return model, AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)


def test_same_numbers_as_transformers_called_directly(loaded: tuple[Path, DualEncoderTeacher]) -> None:
    folder, teacher = loaded
    model, processor, tokenizer = directly(folder)
    images = [picture(0), picture(1, 33, 90)]
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt", return_token_type_ids=False)
    with torch.no_grad():
        expected_image = model.get_image_features(**processor(images, return_tensors="pt")).pooler_output
        expected_text = model.get_text_features(**inputs).pooler_output
        joint = model(**inputs, **processor(images, return_tensors="pt"))
    image = teacher.encode_image(teacher.transform(images))
    text = teacher.encode_text(**teacher.tokenize(TEXTS))
    torch.testing.assert_close(image, expected_image, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(text, expected_text, rtol=1e-6, atol=1e-6)
    assert image.shape == (2, teacher.dim)
    assert text.shape == (3, teacher.dim)
    # The scale and the projections together are the model's own logits.
    cosine = nn.functional.normalize(text) @ nn.functional.normalize(image).T
    assert teacher.logit_scale is not None
    torch.testing.assert_close(cosine * teacher.logit_scale, joint.logits_per_text, rtol=1e-5, atol=1e-5)
    # Nothing is normalised on the way.
    assert not torch.allclose(text.norm(dim=1), torch.ones(3), atol=1e-2)


def test_facts(loaded: tuple[Path, DualEncoderTeacher]) -> None:
    folder, teacher = loaded
    assert teacher.image_size == 32
    assert teacher.dim == {"clip": 16, "dual": 12}[folder.name]
    assert teacher.max_tokens == {"clip": 77, "dual": 20}[folder.name]


def test_overlong_and_empty_texts_are_cut_never_a_crash(loaded: tuple[Path, DualEncoderTeacher]) -> None:
    _, teacher = loaded
    tokens = teacher.tokenize(["dog " * 500, "", "日本語 🎉"])
    assert tokens["input_ids"].shape[1] == teacher.max_tokens
    assert torch.isfinite(teacher.encode_text(**tokens)).all()


def test_padding_does_not_change_a_text(loaded: tuple[Path, DualEncoderTeacher]) -> None:
    _, teacher = loaded
    alone = teacher.encode_text(**teacher.tokenize(TEXTS[-1:]))
    in_batch = teacher.encode_text(**teacher.tokenize(TEXTS))[-1:]
    torch.testing.assert_close(alone, in_batch, rtol=1e-5, atol=1e-6)


def test_frozen_and_in_eval_mode_whatever_the_parent_does(loaded: tuple[Path, DualEncoderTeacher]) -> None:
    _, teacher = loaded
    parent = nn.ModuleList([teacher]).train()
    assert parent.training
    assert not any(module.training for module in teacher.modules())
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    pixels = torch.randn(1, 3, 32, 32, requires_grad=True)
    assert not teacher.encode_image(pixels).requires_grad


def test_half_precision_models_take_float_pixels(loaded: tuple[Path, DualEncoderTeacher]) -> None:
    _, teacher = loaded
    half = copy.deepcopy(teacher).to(torch.bfloat16)
    pixels = teacher.transform([picture(0)])
    assert half.encode_image(pixels).dtype == torch.bfloat16
    torch.testing.assert_close(half.encode_image(pixels).float(), teacher.encode_image(pixels), rtol=0.1, atol=0.05)


def test_identity_knows_weights_and_no_paths(folders: dict[str, Path], tmp_path: Path) -> None:
    first = DualEncoderTeacher.from_pretrained(folders["clip"]).identity
    same = DualEncoderTeacher.from_pretrained(tiny_clip_directory(tmp_path / "elsewhere" / "clip")).identity
    other = DualEncoderTeacher.from_pretrained(tiny_clip_directory(tmp_path / "clip", seed=1)).identity
    assert first == same
    assert first["sha256"] != other["sha256"]
    assert {**first, "sha256": ""} == {"name": "clip", "revision": None, "architecture": "CLIPModel", "sha256": ""}


def test_the_transform_travels_without_weights(folders: dict[str, Path]) -> None:
    transform = DualEncoderTeacher.from_pretrained(folders["clip"]).transform
    data = pickle.dumps(transform)
    assert len(data) < 10_000
    images = [picture(3)]
    assert torch.equal(pickle.loads(data)(images), transform(images))


def test_a_text_model_is_refused(tmp_path: Path, folders: dict[str, Path]) -> None:
    from transformers import BertConfig, BertModel

    for file in folders["dual"].iterdir():
        if file.suffix == ".json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    config = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8)
    BertModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="BertModel, which is not a dual encoder"):
        DualEncoderTeacher.from_pretrained(tmp_path)


def test_missing_weights_are_refused_not_drawn_at_random(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = tiny_clip_directory(tmp_path) / "model.safetensors"
    weights = load_file(file)
    del weights["visual_projection.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of CLIPModel, such as visual_projection\.weight"):
        DualEncoderTeacher.from_pretrained(tmp_path)


def test_a_directory_without_tokenizer_or_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded as a transformers dual encoder"):
        DualEncoderTeacher.from_pretrained(tmp_path)
    (tiny_clip_directory(tmp_path / "clip") / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match="cannot be loaded as a transformers dual encoder"):
        DualEncoderTeacher.from_pretrained(tmp_path / "clip")


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, trap: Path) -> None:
        self.trap = trap

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.trap),)


def test_pickled_weights_run_no_code(tmp_path: Path) -> None:
    folder, trap = tiny_clip_directory(tmp_path / "clip"), tmp_path / "trap"
    (folder / "model.safetensors").unlink()
    torch.save({"logit_scale": Malicious(trap)}, folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="cannot be loaded"):
        DualEncoderTeacher.from_pretrained(folder)
    assert not trap.exists()
