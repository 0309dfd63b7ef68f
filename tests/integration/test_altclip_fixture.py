"""AltCLIP's second stage and its image side against numbers of the released code and of `transformers`."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mclip_fairseq.criterions.image_text import ImageTextCriterion
from mclip_fairseq.formats.altclip import load_altclip
from mclip_fairseq.models.altclip import AltCLIPModel
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.models.vision.trained_tower import VisionTower

# Weights of the fixture -> parameters of the model.
LAYERS = "text_encoder.encoder.sentence_encoder.layers.0."
NAMES = {
    "text_projection.weight": "text_projection.weight",
    "visual_projection.weight": "visual_projection.weight",
    "text_model.transformation.weight": "projection.linear.weight",
    "text_model.pre_LN.weight": "projection.norm.weight",
    "text_model.roberta.encoder.layer.0.output.dense.weight": f"{LAYERS}fc2.weight",
    "vision_model.post_layernorm.weight": "vision.model.post_layernorm.weight",
    "vision_model.encoder.layers.0.self_attn.q_proj.weight": "vision.model.encoder.layers.0.self_attn.q_proj.weight",
}


@pytest.fixture(scope="module")
def folder(shared_dir: Path) -> Path:
    """Numbers of the released code."""
    return shared_dir / "fixtures" / "altclip"


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> AltCLIPModel:
    """The fixture's AltCLIP with everything trained, as the second stage builds it."""
    tower = load_altclip(str(folder / "altclip_tiny"), tmp_path)
    loaded: Any = tower.module
    teacher, cfg = tower.teacher, loaded.cfg
    projections = {side: teacher.projection(side) for side in ("text", "image")}
    cfg.vision_tower, cfg.pooled_image_dim = VisionTower.describe(teacher), projections["image"].weight.shape[1]
    cfg.train_projections = cfg.train_scale = cfg.train_vision = True
    model = AltCLIPModel(cfg, loaded.text_encoder, teacher, teacher.identity, projections)
    model.projection.load_state_dict(loaded.projection.state_dict())
    return model.eval()


@pytest.mark.parametrize(("direction", "prefix"), [("released", "stage2"), ("both", "stage2_symmetric")])
def test_the_second_stage_is_that_of_the_fixture(
    direction: str, prefix: str, whole: AltCLIPModel, folder: Path
) -> None:
    """Loss and gradients of texts and pixels through the whole model and the criterion."""
    outputs, expected = (np.load(folder / f"altclip_{name}.npz") for name in ("outputs", "losses"))
    tokens, pixels = (torch.from_numpy(outputs[name]) for name in ("input_ids", "pixels"))
    sample = {"net_input": {"text_tokens": tokens, "pixel_values": pixels}, "nsentences": len(tokens), "ntokens": 1}
    loss, rows, _ = ImageTextCriterion(None, positives="pair", contrast_direction=direction)(whole, sample)
    (loss / rows).backward()
    assert float(loss.detach()) / rows == pytest.approx(float(expected[f"{prefix}_loss"]), rel=1e-5)
    parameters = dict(whole.named_parameters())
    wanted = {name: expected[f"{prefix}_grad/{name}"] for name in NAMES}
    wanted["logit_scale"] = expected[f"{prefix}_grad_theta"]
    for name, values in wanted.items():
        gradient = parameters[NAMES.get(name, name)].grad
        assert gradient is not None, name
        assert np.abs(gradient.numpy() - values).max() < 1e-5 * np.abs(values).max(), name


def test_logits_and_the_symmetric_loss_are_those_of_the_fixture(whole: AltCLIPModel, folder: Path) -> None:
    outputs = np.load(folder / "altclip_outputs.npz")
    with torch.no_grad():
        text = whole.encode_text(torch.from_numpy(outputs["input_ids"]))
        image = whole.encode_image(torch.from_numpy(outputs["pixels"]))
        logits = whole.scale * text @ image.T
    assert np.abs(text.numpy() - outputs["text_embeds"]).max() < 2e-5
    assert np.abs(image.numpy() - outputs["image_embeds"]).max() < 2e-5
    largest = np.abs(outputs["logits_per_text"]).max()
    assert np.abs(logits.numpy() - outputs["logits_per_text"]).max() < 1e-5 * largest


def test_images_are_prepared_and_encoded_as_in_the_fixture(folder: Path) -> None:
    """From 8-bit pictures to pixels, to the state before the projection, and to the features."""
    teacher, outputs = (
        DualEncoderTeacher.from_pretrained(folder / "clip_teacher_tiny"),
        np.load(folder / "altclip_outputs.npz"),
    )
    pixels = teacher.transform([Image.fromarray(picture) for picture in outputs["images_uint8"]])
    assert np.abs(pixels.numpy() - outputs["images_uint8_pixels"]).max() < 2e-5
    assert np.abs(teacher.encode_image(pixels).numpy() - outputs["images_uint8_features"]).max() < 2e-5
    pooled = teacher.pooled_image(torch.from_numpy(outputs["pixels"])).numpy()
    assert np.abs(pooled - outputs["vision_pooled"]).max() < 2e-5
