"""Sizes that options claim, against those of the weights: a model takes its memory before the weights are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.storage.errors import UserError

MOST_LAYERS = 1000


@dataclass(frozen=True)
class Part:
    """Where the sizes of a part of a model show.

    Attributes:
        layers: the option that counts its layers.
        stack: what the names of their weights begin with, up to the number.
        widths: option -> names and dimensions of the weights that have this size, one of which is there.
    """

    layers: str
    stack: str
    widths: Mapping[str, tuple[tuple[str, int], ...]]


ENCODER = Part(
    "encoder_layers",
    "sentence_encoder.layers.",
    {
        "encoder_embed_dim": (("sentence_encoder.embed_tokens.weight", 1),),
        "encoder_ffn_embed_dim": (("sentence_encoder.layers.0.fc1.weight", 0),),
        "encoder_max_positions": (("sentence_encoder.embed_positions.weight", 0),),
        "max_positions": (("sentence_encoder.embed_positions.weight", 0),),
    },
)
PROJECTORS = Part(
    "projector_layers",
    "x_projector.layers.",
    {
        "projector_ffn_embed_dim": (("x_projector.layers.0.fc1.weight", 0),),
        "teacher_dim": (("c_projector.weight", 1), ("projection.weight", 0)),
    },
)


def refuse_oversized(where: Path, options: Any, weights: Mapping[str, Tensor], part: Part, prefix: str = "") -> None:
    """Refuse options that claim more layers, or larger ones, than the weights have.

    Args:
        where: the file with the options.
        options: those of a model; what they lack is not looked at.
        weights: its state dict.
        part: `ENCODER` or `PROJECTORS`.
        prefix: of the part's names in `weights`.

    Raises:
        UserError: naming the option.
    """
    stack = prefix + part.stack
    layers = {name.removeprefix(stack).split(".")[0] for name in weights if name.startswith(stack)}
    there = {part.layers: len(layers)}
    for option, places in part.widths.items():
        if getattr(options, part.layers, 0) or not places[0][0].startswith(part.stack):  # no layers, no width of theirs
            there[option] = max(_size(weights, prefix + name, dim) for name, dim in places)
    for option, size in there.items():
        claimed = getattr(options, option, None)
        if claimed is not None and int(claimed) > size:
            raise UserError(
                f"{where}: says {option} {int(claimed)}, but its weights have {size}; put back the file that belongs "
                "to them"
            )


def model_without_memory(config: Any) -> Any:
    """A `transformers` model on torch's meta device.

    Args:
        config: of `transformers`; sizes in it may be anything.

    Raises:
        UserError: more layers than any model has; each would take its time even here.
    """
    from transformers import AutoModel

    settings = config.to_dict()
    for part in (settings, *(value for value in settings.values() if isinstance(value, dict))):
        for name, value in part.items():
            if str(name).endswith("layers") and isinstance(value, int) and value > MOST_LAYERS:
                raise UserError(f"its configuration says {name} {value}")
    with torch.device("meta"):
        return AutoModel.from_config(config, trust_remote_code=False)


def refuse_oversized_directory(folder: Path, config: Any) -> None:
    """Refuse a `transformers` directory whose configuration has more parameters than its files have bytes.

    Args:
        folder: with the weights.
        config: what its `config.json` says.

    Raises:
        UserError: with both numbers.
    """
    claimed = sum(parameter.numel() for parameter in model_without_memory(config).parameters())
    held = sum(file.stat().st_size for file in folder.iterdir() if file.suffix in (".safetensors", ".bin"))
    if claimed > held:
        raise UserError(f"its configuration says {claimed} parameters, but its weights are {held} bytes")


def _size(weights: Mapping[str, Tensor], name: str, dim: int) -> int:
    tensor = weights.get(name)
    return tensor.shape[dim] if tensor is not None and tensor.ndim > dim else 0
