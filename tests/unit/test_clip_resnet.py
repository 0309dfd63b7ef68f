"""CLIP with a ResNet through `mclip-convert clip`, against the architecture written out operation by operation."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.convert import main as convert
from mclip_fairseq.formats.openai_clip import clip_sizes

BLOCKS, WIDTH, SIZE, DIM, TEXT = (1, 2, 1, 1), 16, 64, 24, 64
State = dict[str, Tensor]


def convolution(state: State, name: str, outputs: int, inputs: int, edge: int, number: str) -> None:
    """A convolution without bias and its batch normalisation, with statistics that are not 0 and 1."""
    convolution, norm = f"{name}.conv{number}", f"{name}.bn{number}"
    if number == "shortcut":
        convolution, norm = f"{name}.downsample.0", f"{name}.downsample.1"
    state[f"{convolution}.weight"] = torch.randn(outputs, inputs, edge, edge) * (inputs * edge * edge) ** -0.5
    state |= {f"{norm}.weight": torch.rand(outputs) + 0.5, f"{norm}.bias": torch.randn(outputs) * 0.1}
    state |= {f"{norm}.running_mean": torch.randn(outputs) * 0.1, f"{norm}.running_var": torch.rand(outputs) + 0.5}
    state[f"{norm}.num_batches_tracked"] = torch.tensor(7)


@pytest.fixture
def state() -> State:
    """A small ResNet CLIP under OpenAI's names."""
    state: State = {}
    for number, (outputs, inputs) in enumerate(((WIDTH // 2, 3), (WIDTH // 2, WIDTH // 2), (WIDTH, WIDTH // 2)), 1):
        convolution(state, "visual", outputs, inputs, 3, str(number))
    inputs = WIDTH
    for stage, blocks in enumerate(BLOCKS):
        inside = WIDTH * 2**stage
        for block in range(blocks):
            name = f"visual.layer{stage + 1}.{block}"
            convolution(state, name, inside, inputs, 1, "1")
            convolution(state, name, inside, inside, 3, "2")
            convolution(state, name, 4 * inside, inside, 1, "3")
            if not block:
                convolution(state, name, 4 * inside, inputs, 1, "shortcut")
            inputs = 4 * inside
    state["visual.attnpool.positional_embedding"] = torch.randn((SIZE // 32) ** 2 + 1, inputs) * 0.1
    for name, outputs in (("q_proj", inputs), ("k_proj", inputs), ("v_proj", inputs), ("c_proj", DIM)):
        state[f"visual.attnpool.{name}.weight"] = torch.randn(outputs, inputs) * inputs**-0.5
        state[f"visual.attnpool.{name}.bias"] = torch.randn(outputs) * 0.1
    layer = "transformer.resblocks.0"
    shapes: dict[str, tuple[int, ...]] = {
        "positional_embedding": (9, TEXT),
        "token_embedding.weight": (20, TEXT),
        "text_projection": (TEXT, DIM),
    }
    shapes |= {f"{layer}.attn.in_proj_weight": (3 * TEXT, TEXT), f"{layer}.attn.in_proj_bias": (3 * TEXT,)}
    for name, outputs, columns in (("attn.out_proj", TEXT, TEXT), ("mlp.c_fc", 128, TEXT), ("mlp.c_proj", TEXT, 128)):
        shapes |= {f"{layer}.{name}.weight": (outputs, columns), f"{layer}.{name}.bias": (outputs,)}
    for name in (f"{layer}.ln_1", f"{layer}.ln_2", "ln_final"):
        shapes |= {f"{name}.weight": (TEXT,), f"{name}.bias": (TEXT,)}
    return state | {name: torch.randn(shape) for name, shape in shapes.items()} | {"logit_scale": torch.tensor(4.6)}


def slow_features(state: State, x: Tensor) -> Tensor:
    """The image tower, one operation per line."""

    def normalised(x: Tensor, convolution: str, norm: str, stride: int = 1) -> Tensor:
        weight = state[f"visual.{convolution}.weight"]
        x = F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)
        mean, variance, gain, bias = (
            state[f"visual.{norm}.{name}"][:, None, None] for name in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / (variance + 1e-5).sqrt() * gain + bias

    for number in (1, 2, 3):
        x = normalised(x, f"conv{number}", f"bn{number}", stride=2 if number == 1 else 1).relu()
    x = F.avg_pool2d(x, 2)
    for stage, blocks in enumerate(BLOCKS, 1):
        for block in range(blocks):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = normalised(x, f"{name}.conv1", f"{name}.bn1").relu()
            y = F.avg_pool2d(normalised(y, f"{name}.conv2", f"{name}.bn2").relu(), stride)
            y = normalised(y, f"{name}.conv3", f"{name}.bn3")
            if block == 0:
                x = normalised(F.avg_pool2d(x, stride), f"{name}.downsample.0", f"{name}.downsample.1")
            x = (x + y).relu()
    rows = []
    for picture in x.flatten(2).transpose(1, 2):
        tokens = torch.cat([picture.mean(0, keepdim=True), picture]) + state["visual.attnpool.positional_embedding"]
        query, key, value = (
            tokens @ state[f"visual.attnpool.{name}.weight"].T + state[f"visual.attnpool.{name}.bias"]
            for name in ("q_proj", "k_proj", "v_proj")
        )
        heads = [
            (query[0, start : start + 64] @ key[:, start : start + 64].T / 8).softmax(0) @ value[:, start : start + 64]
            for start in range(0, query.shape[1], 64)
        ]
        rows.append(torch.cat(heads) @ state["visual.attnpool.c_proj.weight"].T + state["visual.attnpool.c_proj.bias"])
    return torch.stack(rows)


def test_features_are_those_of_the_architecture(state: State, tmp_path: Path) -> None:
    torch.save(state, tmp_path / "RN.pt")
    assert convert(["clip", str(tmp_path / "RN.pt"), "--output", str(tmp_path / "clip")]) == 0
    model = MultilingualCLIP.from_pretrained(tmp_path / "clip", device="cpu")
    pixels = torch.randn(3, 3, SIZE, SIZE)
    expected = slow_features(state, pixels)
    torch.testing.assert_close(model.encode_image(pixels, normalize=False), expected, rtol=1e-5, atol=1e-5)
    # a control: statistics that are not the checkpoint's give other features
    state["visual.layer2.0.bn2.running_mean"] += 1
    assert (slow_features(state, pixels) - expected).abs().max() > 1e-3
    picture = Image.effect_noise((90, 70), 60).convert("RGB")
    assert model.encode_image(picture).shape == (1, DIM)
    assert model.encode_text(torch.tensor([[18, 3, 4, 19]])).shape == (1, DIM)


def test_sizes_of_the_published_resnets_are_read_from_the_tensors(state: State) -> None:
    assert clip_sizes(state, "RN") | {"text_config": {}} == {
        "projection_dim": DIM,
        "text_config": {},
        "blocks": list(BLOCKS),
        "width": WIDTH,
        "image_size": SIZE,
    }


def test_a_missing_statistic_is_named(state: State, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    del state["visual.layer3.0.bn1.running_var"]
    torch.save(state, tmp_path / "RN.pt")
    assert convert(["clip", str(tmp_path / "RN.pt"), "--output", str(tmp_path / "clip")]) == 2
    assert "missing: vision_model.layer3.0.bn1.running_var" in capsys.readouterr().err
