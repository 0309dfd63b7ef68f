"""CLIP state dicts with OpenAI's names, as OpenAI and open_clip store them, as models of `transformers`.

Sizes are read from the tensors. What no tensor shows (activation, width of an attention head, mean and deviation of
the pixels) comes from arguments, with OpenAI's values as defaults.
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
from mclip_fairseq.models.sizes import check_heads
from mclip_fairseq.models.weights import check_weights
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.fields import Kind, check_fields, has_type
from mclip_fairseq.storage.files import first_line, read_json

HEAD_WIDTH = 64
OPEN_CLIP_CONFIG = "open_clip_config.json"
CONFIG_REMEDY = "restore the file that was published with the weights"
# Bookkeeping in OpenAI's archives and in transformers, which the model does not need.
IGNORED = ("input_resolution", "context_length", "vocab_size", "attn_mask")
BOOKKEEPING = ("position_ids", "num_batches_tracked")
RESNET = "visual.layer1.0.conv1.weight"
RESNET_STRIDE = 32
# Tensors that sizes are read from, with their dimensions.
TEXT_TENSORS = {
    "positional_embedding": 2,
    "token_embedding.weight": 2,
    "text_projection": 2,
    "transformer.resblocks.0.mlp.c_fc.weight": 2,
}
VIT_TENSORS = {
    "visual.conv1.weight": 4,
    "visual.positional_embedding": 2,
    "visual.transformer.resblocks.0.mlp.c_fc.weight": 2,
}
RESNET_TENSORS = {"visual.conv1.weight": 4, "visual.attnpool.positional_embedding": 2, "visual.conv3.weight": 4}
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
    """How an image is prepared for the model.

    Attributes:
        resize: pixels of the shorter edge before the crop; 0: the model's own resolution.
        mean: subtracted from the channels.
        std: the channels are divided by it.
    """

    resize: int = 0
    mean: tuple[float, ...] = MEAN
    std: tuple[float, ...] = STD


def read_state_dict(file: Path, trust: bool = False) -> dict[str, Tensor]:
    """Read a CLIP state dict.

    Args:
        file: safetensors, a state dict written by `torch.save` (alone or below `state_dict`), or OpenAI's TorchScript
            archive.
        trust: allow a TorchScript archive; reading one can run code from the archive.

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
        try:
            return dict(torch.jit.load(str(file), map_location="cpu").state_dict())
        except Exception as error:  # its reader raises whatever a damaged archive leads it to
            raise UserError(f"{file}: is not a TorchScript archive, or is damaged: {first_line(error)}") from error
    state = load_checkpoint(file)
    state = state.get("state_dict", state)
    if not isinstance(state, dict) or not all(isinstance(name, str) for name in state):
        raise UserError(f"{file}: holds no state dict; give the weights of a CLIP")
    # Training checkpoints of open_clip also hold numbers, and a prefix from DistributedDataParallel.
    return {name.removeprefix("module."): tensor for name, tensor in state.items() if isinstance(tensor, Tensor)}


def open_clip_settings(file: Path) -> tuple[dict[str, Any], Preprocessing] | None:
    """What `open_clip_config.json` beside the weights says about facts that no tensor shows.

    Args:
        file: the weights.

    Returns:
        arguments of `to_clip_model`, and the preprocessing; None if the file does not exist.

    Raises:
        UserError: it cannot be read, or a field has another type.
    """
    config = file.parent / OPEN_CLIP_CONFIG
    if not config.is_file():
        return None

    def fields(value: Any, kinds: dict[str, Kind]) -> dict[str, Any]:
        return check_fields(config, value, kinds, CONFIG_REMEDY)

    stored = fields(read_json(config), {"model_cfg": dict, "preprocess_cfg": dict | None})
    model = fields(stored["model_cfg"], {"vision_cfg": dict, "text_cfg": dict | None, "quick_gelu": bool | None})
    vision = fields(model["vision_cfg"], {"head_width": int | None})
    text = fields(model.get("text_cfg") or {}, {"heads": int | None})
    pixels = fields(stored.get("preprocess_cfg") or {}, {"mean": list | None, "std": list | None})
    for name in ("mean", "std"):
        if not all(has_type(number, float) for number in pixels.get(name) or ()):
            raise UserError(f"{config}: {name} is not a list of numbers; {CONFIG_REMEDY}")
    settings = {
        "activation": "quick_gelu" if model.get("quick_gelu") else "gelu",
        "head_width": vision.get("head_width") or HEAD_WIDTH,
        "text_heads": text.get("heads") or 0,
    }
    mean, std = (tuple(map(float, pixels.get(name) or default)) for name, default in (("mean", MEAN), ("std", STD)))
    return settings, Preprocessing(mean=mean, std=std)


def is_torchscript(file: Path) -> bool:
    """Whether a file is a TorchScript archive; only its table of contents is read."""
    if not file.is_file() or not zipfile.is_zipfile(file):
        return False
    try:
        with zipfile.ZipFile(file) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UserError(f"{file}: is not a zip archive, or is damaged: {first_line(error)}") from error


def clip_sizes(state: Mapping[str, Tensor], source: str) -> dict[str, Any]:
    """`CLIPConfig` or, for a ResNet, `CLIPResNetConfig` arguments read from the tensors.

    Raises:
        UserError: a tensor that shows a size is missing, empty or has another number of dimensions.
    """
    resnet = RESNET in state
    needed = (RESNET_TENSORS if resnet else VIT_TENSORS) | TEXT_TENSORS
    if missing := [name for name in needed if name not in state]:
        raise UserError(f"{source}: is not a CLIP under OpenAI's names; it lacks {', '.join(missing)}")
    for name, dimensions in needed.items():
        if state[name].ndim != dimensions or not state[name].numel():
            raise UserError(
                f"{source}: is not a CLIP under OpenAI's names; {name} has shape {tuple(state[name].shape)}"
            )
    text_width, dim = state["text_projection"].shape
    vocabulary = len(state["token_embedding.weight"])
    text = {
        "hidden_size": text_width,
        "intermediate_size": len(state["transformer.resblocks.0.mlp.c_fc.weight"]),
        "num_hidden_layers": count_layers(state, "transformer"),
        "max_position_embeddings": len(state["positional_embedding"]),
        "vocab_size": vocabulary,
        "projection_dim": dim,
        # CLIP pools at <|endoftext|>, the last entry of its vocabulary.
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
        "pad_token_id": 0,
    }
    image = resnet_sizes(state) if resnet else {"vision_config": vit_sizes(state) | {"projection_dim": dim}}
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
    """The arguments of `CLIPResNetConfig` for the image tower."""
    stages = [{name.split(".")[2] for name in state if name.startswith(f"visual.layer{n}.")} for n in range(1, 5)]
    return {
        "blocks": [len(stage) for stage in stages],
        "width": len(state["visual.conv3.weight"]),
        "image_size": RESNET_STRIDE * edge(state["visual.attnpool.positional_embedding"]),
    }


def edge(positions: Tensor) -> int:
    """Grid cells along an edge, from a position table: its first row is the class token or the mean, not a cell."""
    return round((len(positions) - 1) ** 0.5)


def count_layers(state: Mapping[str, Tensor], stack: str) -> int:
    """Number of transformer layers below a name."""
    prefix = f"{stack}.resblocks."
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def to_clip_model(
    state: Mapping[str, Tensor],
    source: str,
    activation: str = "quick_gelu",
    head_width: int = HEAD_WIDTH,
    text_heads: int = 0,
) -> Any:
    """Build a `transformers.CLIPModel`, or a `CLIPResNetModel`, of these weights in float32.

    Args:
        state: under OpenAI's names.
        source: for messages.
        activation: `quick_gelu` (OpenAI) or `gelu` (most of open_clip).
        head_width: columns of an attention head of a ViT.
        text_heads: attention heads of the text tower; 0: one per 64 columns.

    Raises:
        UserError: tensors are missing, unknown or misshapen (all are named), or heads do not divide a width.
    """
    shield_torchaudio()
    sizes = clip_sizes(state, source)
    for tower, heads, width in (("vision_config", 0, head_width), ("text_config", text_heads, HEAD_WIDTH)):
        if tower in sizes:
            columns = sizes[tower]["hidden_size"]
            heads = heads or (columns // width if width > 0 else 0)
            check_heads(source, "number of attention heads", heads, columns)
            sizes[tower] |= {"hidden_act": activation, "num_attention_heads": heads}
    weights, unknown = rename(state)
    if RESNET in state:
        from mclip_fairseq.models.vision.clip_resnet import CLIPResNetConfig, CLIPResNetModel, attention_heads

        config = CLIPResNetConfig(**sizes)
        check_heads(source, "number of attention heads", attention_heads(config), config.output_width)
        model: Any = CLIPResNetModel(config)
        weights = {f"text.{name}" if name.startswith("text_") else name: tensor for name, tensor in weights.items()}
    else:
        from transformers import CLIPConfig, CLIPModel

        model = CLIPModel(CLIPConfig(**sizes))
    own = {name: tensor for name, tensor in model.state_dict().items() if not name.endswith(BOOKKEEPING)}
    check_weights(weights | unknown, own, source)
    model.load_state_dict(weights, strict=False)
    return model.eval()


def rename(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a state dict into weights under the names of `transformers`, and those under unknown names."""
    weights: dict[str, Tensor] = {}
    unknown: dict[str, Tensor] = {}
    resnet = RESNET in state
    for name, tensor in state.items():
        block = BLOCK.fullmatch(name)
        tensor = tensor.float()
        if resnet and name.startswith("visual.") and not name.endswith(BOOKKEEPING):
            weights[f"vision_model.{name.removeprefix('visual.')}"] = tensor
        elif name in SINGLE:
            weights[SINGLE[name]] = tensor
        elif name in TRANSPOSED and tensor.ndim == 2:
            weights[TRANSPOSED[name]] = tensor.T.contiguous()
        elif block and block[3] == "attn.in_proj" and tensor.ndim and len(tensor) % 3 == 0:
            # OpenAI stacks the projections of query, key and value in one tensor.
            for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                weights[f"{layer_prefix(block)}self_attn.{letter}_proj.{block[4]}"] = third.contiguous()
        elif block and block[3] in LAYER_PARTS:
            weights[f"{layer_prefix(block)}{LAYER_PARTS[block[3]]}.{block[4]}"] = tensor
        elif name not in IGNORED and not name.endswith(BOOKKEEPING):
            unknown[name] = tensor
    return weights, unknown


def layer_prefix(block: re.Match[str]) -> str:
    """The name in `transformers` of the layer in a match of `BLOCK`."""
    return f"{'vision' if block[1] else 'text'}_model.encoder.layers.{block[2]}."


def pixels_along_an_edge(model: Any) -> int:
    """Edge of the images that a model of `to_clip_model` reads."""
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
