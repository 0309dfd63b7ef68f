"""Published checkpoints with altered options or weights: one sentence, never a traceback or a full memory."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mclip_fairseq.export.conversions import (
    CLIPOptions,
    convert_clip,
    convert_encoder,
    convert_released,
    convert_translation,
)
from mclip_fairseq.export.xlmr_archive import extract_text_encoder
from mclip_fairseq.formats.openai_clip import open_clip_settings
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError

STORED = Path(__file__).resolve().parents[1] / "data" / "legacy"
Convert = Callable[[Path, Path, Path], object]
CONVERTERS: dict[str, Convert] = {
    "mclip_tiny.pt": convert_released,
    "mte_tiny.pt": convert_translation,
    "xlmr_tiny/model.pt": convert_encoder,
    "clip_tiny.pt": lambda file, _, output: convert_clip(file, output, CLIPOptions()),
}


def refused(call: Callable[[], object]) -> str:
    """Call, and expect one sentence of ours."""
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message.isprintable()
    assert not message.endswith(".")
    return message


@pytest.fixture
def refuses(shared_dir: Path, tmp_path: Path) -> Callable[[str, Callable[[Any], object]], str]:
    """A function that alters a checkpoint and returns why converting it is refused."""
    fixtures = shared_dir / "fixtures"

    def alter(name: str, change: Callable[[Any], object]) -> str:
        state = copy.deepcopy(load_checkpoint(fixtures / name))
        change(state)
        file = tmp_path / "altered.pt"
        torch.save(state, file)
        message = refused(lambda: CONVERTERS[name](file, fixtures / "xlmr_tiny", tmp_path / "output"))
        assert "altered.pt" in message
        assert not (tmp_path / "output").exists()
        return message

    return alter


HUGE = 1 << 40
OPTIONS: dict[tuple[str, str], list[Any]] = {
    ("mclip_tiny.pt", "encoder_ffn_embed_dim"): [None, "x", -1, HUGE, True, [1]],
    ("mclip_tiny.pt", "encoder_attention_heads"): [None, "x", -1, 0, 5, HUGE],
    ("mclip_tiny.pt", "langs"): ["en,de", [1], {}],
    ("mclip_tiny.pt", "dropout"): ["x", None, []],
    ("mte_tiny.pt", "decoder_layers"): [None, -1, HUGE, "2"],
    ("mte_tiny.pt", "decoder_ffn_embed_dim"): [-1, HUGE, 1.5],
    ("mte_tiny.pt", "decoder_attention_heads"): [0, 5, -4],
    ("mte_tiny.pt", "max_target_positions"): [0, -1, HUGE],
    ("mte_tiny.pt", "langs"): [None, ["en"], [None]],
    ("xlmr_tiny/model.pt", "encoder_layers"): [None, 0, -1, "x", HUGE],
    ("xlmr_tiny/model.pt", "encoder_attention_heads"): [0, 5, -4, HUGE],
    ("xlmr_tiny/model.pt", "max_positions"): ["x", -1, [], 1.5],
    ("xlmr_tiny/model.pt", "activation_fn"): [3, "sigh"],
}


@pytest.mark.parametrize(
    ("name", "option", "value"), [(*option, value) for option, values in OPTIONS.items() for value in values]
)
def test_options_of_a_wrong_type_or_size(name: str, option: str, value: Any, refuses: Any) -> None:
    def change(state: dict[str, Any]) -> None:
        options = state.get("args") or state["cfg"]["model"]
        assert hasattr(options, option)
        setattr(options, option, value)

    refuses(name, change)


WEIGHTS = {
    "mclip_tiny.pt": ("encoder.dim_proj.weight", "encoder.clip.visual.conv1.weight", "encoder.clip.visual.proj"),
    "mte_tiny.pt": ("encoder.lang_proj.1.weight", "decoder.embed_tokens.weight", "decoder.layers.0.fc1.weight"),
    "xlmr_tiny/model.pt": ("decoder.sentence_encoder.embed_tokens.weight", "decoder.lm_head.bias"),
    "clip_tiny.pt": ("positional_embedding", "text_projection", "transformer.resblocks.0.attn.in_proj_weight"),
}
ODD = [torch.zeros(()), torch.zeros(0), torch.zeros(2, 5), torch.zeros(2, 2).to_sparse()]


@pytest.mark.parametrize("value", ODD, ids=["scalar", "empty", "matrix", "sparse"])
@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_of_a_wrong_shape(name: str, value: Tensor, refuses: Any) -> None:
    for weight in WEIGHTS[name]:

        def change(state: dict[str, Any], weight: str = weight) -> None:
            weights = state if name == "clip_tiny.pt" else state["model"]
            own = weight if weight in weights else weight.replace("decoder.", "encoder.", 1)
            assert own in weights
            weights[own] = value

        refuses(name, change)


@pytest.mark.parametrize("value", [None, 3, "x", [1], {"a": 3}, {1: torch.zeros(1)}])
@pytest.mark.parametrize("name", ["mclip_tiny.pt", "mte_tiny.pt", "xlmr_tiny/model.pt"])
@pytest.mark.parametrize("entry", ["model", "options"])
def test_entries_of_a_wrong_type(entry: str, name: str, value: Any, refuses: Any) -> None:
    def change(state: dict[str, Any]) -> None:
        if entry == "model":
            state["model"] = value
        else:
            state |= {"args": None, "cfg": {"model": value}}

    refuses(name, change)


@pytest.mark.parametrize("value", [None, 3, torch.zeros(0), torch.zeros(2)])
def test_a_released_checkpoint_without_its_scale(value: Any, refuses: Any) -> None:
    assert "has no learned scale" in refuses(
        "mclip_tiny.pt", lambda s: s["criterion"].update({"it_logit_scale": value})
    )


@pytest.mark.parametrize("layer", ["foo", "999999999.fc1.weight"])
def test_layer_numbers_are_not_sizes(layer: str, refuses: Any) -> None:
    """The highest number in a name would build a billion layers."""
    name = f"encoder.encoder_adapter.{layer}"
    assert "unknown: x_projector.layers." in refuses(
        "mclip_tiny.pt", lambda s: s["model"].update({name: torch.ones(2)})
    )
    name = f"transformer.resblocks.{layer}"
    assert "missing: " in refuses("clip_tiny.pt", lambda s: s.update({name: torch.ones(2)}))


@pytest.mark.parametrize(
    "config",
    [
        *([], {}, {"model_cfg": 3}, {"model_cfg": {}}, {"model_cfg": {"vision_cfg": {"head_width": "64"}}}),
        *({"model_cfg": {"vision_cfg": {}, "text_cfg": []}}, {"model_cfg": {"vision_cfg": {}, "quick_gelu": "yes"}}),
        *({"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {"mean": 3}},),
        *({"model_cfg": {"vision_cfg": {}}, "preprocess_cfg": {"std": [0.1, "x", None]}},),
    ],
)
def test_configurations_of_open_clip(config: Any, tmp_path: Path) -> None:
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config))
    assert "open_clip_config.json: " in refused(lambda: open_clip_settings(tmp_path / "weights.bin"))


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("_name", "wav2vec2"), ("_name", 3), ("encoder_layers", 1 << 40), ("encoder_layers", "x"), ("dropout", None)),
        *(("encoder_attention_heads", 5), ("encoder_max_positions", -1), ("langs", ["en"])),
    ],
)
def test_text_encoders_that_cannot_be_extracted(option: str, value: Any, tmp_path: Path) -> None:
    state = load_checkpoint(STORED / "mte.pt")
    torch.save(state, tmp_path / "mte.pt")
    extract_text_encoder(tmp_path / "mte.pt", STORED / "encoder", tmp_path / "archive")
    state["cfg"]["model"][option] = value
    torch.save(state, tmp_path / "mte.pt")
    message = refused(lambda: extract_text_encoder(tmp_path / "mte.pt", STORED / "encoder", tmp_path / "output"))
    assert "mte.pt: " in message
    assert not (tmp_path / "output").exists()


def test_a_frozen_text_encoder_is_not_in_the_checkpoint(tmp_path: Path) -> None:
    message = refused(lambda: extract_text_encoder(STORED / "mclip.pt", STORED / "encoder", tmp_path / "output"))
    assert "mclip.pt: holds no text encoder" in message
