"""CLIP state dicts with OpenAI's names, as OpenAI and open_clip store them, into `transformers`.

Sizes are read off the tensors. Only what no tensor tells (the activation, the width of a head, the pixels' mean) comes
from arguments: OpenAI's own values are the defaults.
"""

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.compat import shield_torchaudio
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.files import expecting, read_json

HEAD_WIDTH = 64
OPEN_CLIP_CONFIG = "open_clip_config.json"
# Bookkeeping in OpenAI's archives and in transformers; the model is whole without it.
IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask")
BOOKKEEPING = ("position_ids", "num_batches_tracked")
RESNET = "visual.layer1.0.conv1.weight"
RESNET_STRIDE = 32
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
LAYER_PARTS = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}
SINGLE = {
    "logit_scale": "logit_scale",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    **{
        f"{theirs}.{part}": f"{ours}.{part}"
        for theirs, ours in (
            ("ln_final", "text_model.final_layer_norm"),
            ("visual.ln_pre", "vision_model.pre_layrnorm"),
            ("visual.ln_post", "vision_model.post_layernorm"),
        )
        for part in ("weight", "bias")
    },
}
TRANSPOSED = {"text_projection": "text_projection.weight", "visual.proj": "visual_projection.weight"}
BLOCK = re.compile(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)")


@dataclass(frozen=True)
class Preprocessing:
    """What happens to an image before the model sees it.

    Attributes:
        resize: pixels of the shorter edge; 0 is the model's own resolution.
        mean: of the channels, subtracted.
        std: of the channels, divided by.
    """

    resize: int = 0
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def read_state_dict(file: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read a CLIP state dict.

    Args:
        file: safetensors, a state dict written by `torch.save` (alone or below `state_dict`), or OpenAI's TorchScript
            archive.
        trust: allow a TorchScript archive, whose reader can run code that the archive brings.

    Raises:
        UserError: the file cannot be read, or is TorchScript and not trusted.
    """
    if file.suffix == ".safetensors":
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            return load_file(file)
        except (OSError, SafetensorError) as error:
            raise UserError(f"{file}: cannot be read: {error}") from error
    if is_torchscript(file):
        if not trust:
            raise UserError(
                f"{file}: is a TorchScript archive, which can run code when it is read; pass --trust if you know where "
                "it comes from"
            )
        with expecting(file, "a TorchScript archive"):
            return dict(torch.jit.load(str(file), map_location="cpu").state_dict())
    state = load_checkpoint(file)
    state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{file}: holds no state dict; give the weights of a CLIP")
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def open_clip_settings(file: Path) -> tuple[dict[str, Any], Preprocessing] | None:
    """What `open_clip_config.json` beside the weights says that no tensor tells.

    Args:
        file: the weights.

    Returns:
        arguments of `to_clip_model`, and the preprocessing; None where there is no such file.

    Raises:
        UserError: it cannot be read.
    """
    config = file.parent / OPEN_CLIP_CONFIG
    if not config.is_file():
        return None
    stored = read_json(config)
    with expecting(config, "a configuration of open_clip"):
        model, pixels = stored["model_cfg"], stored.get("preprocess_cfg", {})
        settings = {
            "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
            "head_width": int(model["vision_cfg"].get("head_width", HEAD_WIDTH)),
            "text_heads": int(model.get("text_cfg", {}).get("heads", 0)),
        }
        mean, std = (tuple(map(float, pixels.get(name, default))) for name, default in (("mean", MEAN), ("std", STD)))
    return settings, Preprocessing(mean=mean, std=std)


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive, told by its table of contents alone."""
    if not file.is_file() or not zipfile.is_zipfile(file):
        return False
    with expecting(file, "a zip archive"), zipfile.ZipFile(file) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def clip_sizes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """`CLIPConfig` or, for a ResNet, `CLIPResNetConfig` arguments read off the tensors.

    Raises:
        UserError: no CLIP under OpenAI's names.
    """
    visual = (RESNET, "visual.attnpool.positional_embedding") if RESNET in state else ("visual.positional_embedding",)
    needed = ("visual.conv1.weight", *visual, "positional_embedding", "token_embedding.weight", "text_projection")
    if missing := [name for name in needed if name not in state]:
        raise UserError(f"{source}: is no CLIP under OpenAI's names; it lacks {', '.join(missing)}")
    text_width, dim = state["text_projection"].shape
    vocabulary = len(state["token_embedding.weight"])
    text = {
        "hidden_size": text_width,
        "intermediate_size": len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": count_layers(state, "transformer"),
        "max_position_embeddings": len(state["positional_embedding"]),
        "vocab_size": vocabulary,
        "projection_dim": dim,
        # The pooled token is <|endoftext|>, the last entry.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }
    image = resnet_sizes(state) if RESNET in state else {"vision_config": vit_sizes(state) | {"projection_dim": dim}}
    return {"projection_dim": dim, "text_config": text, **image}


def vit_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """`CLIPVisionConfig` arguments of a ViT."""
    width, _, patch, _ = state["visual.conv1.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": len(state["visual.transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": count_layers(state, "visual.transformer"),
        "patch_size": patch,
        "image_size": patch * edge(state["visual.positional_embedding"]),
    }


def resnet_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The image tower's part of `CLIPResNetConfig`."""
    stages = [{name.split(".")[2] for name in state if name.startswith(f"visual.layer{n}.")} for n in range(1, 5)]
    return {
        "blocks": [len(stage) for stage in stages],
        "width": len(state["visual.conv3.weight"]),
        "image_size": RESNET_STRIDE * edge(state["visual.attnpool.positional_embedding"]),
    }


def edge(positions: Tensor) -> int:
    """Places along an edge of a position table, whose first row is not a place."""
    return round((len(positions) - 1) ** 0.5)


def count_layers(state: Mapping[str, Tensor], stack: str) -> int:
    """Number of transformer layers below a name."""
    return 1 + max(
        int(name.split(".")[stack.count(".") + 2]) for name in state if name.startswith(f"{stack}.resblocks.")
    )


def to_clip_model(
    state: Mapping[str, Tensor],
    source: str,
    activation: str = "quick_gelu",
    head_width: int = HEAD_WIDTH,
    text_heads: int = 0,
) -> Any:
    """Build a `transformers.CLIPModel`, or a `CLIPResNetModel`, of these weights in float32.

    Args:
        state: OpenAI's names.
        source: for messages.
        activation: `quick_gelu` (OpenAI) or `gelu` (most of open_clip).
        head_width: columns of an attention head of a ViT.
        text_heads: attention heads of the text tower; 0: one for every 64 columns.

    Raises:
        UserError: missing, unknown or misshapen tensors, all of them named.
    """
    shield_torchaudio()
    with expecting(source, "a CLIP under OpenAI's names"):
        sizes = clip_sizes(state, source)
        for tower, given, width in (("vision_config", 0, head_width), ("text_config", text_heads, HEAD_WIDTH)):
            if tower in sizes:
                heads = given or sizes[tower]["hidden_size"] // width
                sizes[tower] |= {"hidden_act": activation, "num_attention_heads": heads}
        weights, unknown = rename(state)
        if RESNET in state:
            from mclip_fairseq.models.vision.clip_resnet import CLIPResNetConfig, CLIPResNetModel

            model: Any = CLIPResNetModel(CLIPResNetConfig(**sizes))
            weights = {f"text.{name}" if name.startswith("text_") else name: tensor for name, tensor in weights.items()}
        else:
            from transformers import CLIPConfig, CLIPModel

            model = CLIPModel(CLIPConfig(**sizes))
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(BOOKKEEPING)}
    refuse_mismatch(weights, own, unknown, source)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def rename(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """OpenAI's names to those of `transformers`, and the names that fit none."""
    weights: dict[str, Tensor] = {}
    unknown = []
    resnet = RESNET in state
    for name, tensor in state.items():
        block = BLOCK.fullmatch(name)
        tensor = tensor.float()
        if resnet and name.startswith("visual.") and not name.endswith(BOOKKEEPING):
            weights[f"vision_model.{name.removeprefix('visual.')}"] = tensor
        elif name in SINGLE:
            weights[SINGLE[name]] = tensor
        elif name in TRANSPOSED:
            weights[TRANSPOSED[name]] = tensor.T.contiguous()
        elif block and (block[3] in LAYER_PARTS or block[3] == "attn.in_proj"):
            prefix = f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}."
            if block[3] == "attn.in_proj":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    weights[f"{prefix}self_attn.{letter}_proj.{block[4]}"] = third.contiguous()
            else:
                weights[f"{prefix}{LAYER_PARTS[block[3]]}.{block[4]}"] = tensor
        elif name not in IGNORED and not name.endswith(BOOKKEEPING):
            unknown.append(name)
    return weights, unknown


def refuse_mismatch(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor], unknown: list[str], source: str) -> None:
    """Refuse weights that are not exactly those of the model, naming every one that differs."""
    missing = sorted(set(wanted) - set(given))
    extra = sorted(set(given) - set(wanted)) + sorted(unknown)
    shapes = [
        f"{name} {tuple(given[name].shape)} instead of {tuple(wanted[name].shape)}"
        for name in sorted(set(given) & set(wanted))
        if given[name].shape != wanted[name].shape
    ]
    found = [("missing", missing), ("unknown", extra), ("of another shape", shapes)]
    if any(names for _, names in found):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in found if names)
        raise UserError(f"{source}: its weights are not those of the model; {listed}")


def pixels_along_an_edge(model: Any) -> int:
    """What the image tower of `to_clip_model` takes."""
    return int(getattr(model.config, "vision_config", model.config).image_size)


def image_processor(image_size: int, preprocessing: Preprocessing) -> Any:
    """The `transformers` image processor: bicubic resize of the shorter edge, centre crop, normalisation."""
    shield_torchaudio()
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(
        size={"shortest_edge": preprocessing.resize or image_size},
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(preprocessing.mean),
        image_std=list(preprocessing.std),
    )
