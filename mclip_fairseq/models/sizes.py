"""Reject configurations larger than their weights, before memory is allocated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mclip_fairseq.storage.errors import UserError


@dataclass(frozen=True)
class SizeGroup:
    """The options that set the sizes of one stack of layers, and the weights that show them.

    Attributes:
        layers: the option that counts the layers.
        stack: prefix of the layers' weights, up to the layer number.
        widths: option -> (weight, dimension) pairs, one of which the model has, whose size is the option's.
    """

    layers: str
    stack: str
    widths: Mapping[str, tuple[tuple[str, int], ...]]


ENCODER = SizeGroup(
    "encoder_layers",
    "sentence_encoder.layers.",
    {
        "encoder_embed_dim": (("sentence_encoder.embed_tokens.weight", 1),),
        "encoder_ffn_embed_dim": (("sentence_encoder.layers.0.fc1.weight", 0),),
        "encoder_max_positions": (("sentence_encoder.embed_positions.weight", 0),),
        "max_positions": (("sentence_encoder.embed_positions.weight", 0),),
    },
)
DECODER = SizeGroup(
    "decoder_layers", "decoder.layers.", {"decoder_ffn_embed_dim": (("decoder.layers.0.fc1.weight", 0),)}
)
PROJECTORS = SizeGroup(
    "projector_layers",
    "x_projector.layers.",
    {
        "projector_ffn_embed_dim": (("x_projector.layers.0.fc1.weight", 0),),
        "teacher_dim": (("c_projector.weight", 1), ("projection.weight", 0), ("projection.linear.weight", 0)),
    },
)


def check_sizes(where: Path, options: Any, weights: Mapping[str, Tensor], group: SizeGroup, prefix: str = "") -> None:
    """Check that options claim no more layers, and no larger ones, than the weights have, and no negative sizes.

    Args:
        where: the file with the options.
        options: those of a model, as attributes; options that it lacks are skipped.
        weights: its state dict.
        group: the options to compare.
        prefix: of the group's weights in `weights`.

    Raises:
        UserError: naming the option.
    """
    stack = prefix + group.stack
    layers = {name.removeprefix(stack).split(".")[0] for name in weights if name.startswith(stack)}
    stored = {group.layers: len(layers)}
    for option, places in group.widths.items():
        # A model without layers has no weight that shows how wide they would be, and its option is never used.
        if getattr(options, group.layers, 0) or not places[0][0].startswith(group.stack):
            stored[option] = max(_size(weights, prefix + name, dim) for name, dim in places)
    for option, size in stored.items():
        claimed = getattr(options, option, None)
        if claimed is not None and not 0 <= int(claimed) <= size:
            raise UserError(
                f"{where}: says {option} {int(claimed)}, but its weights have {size}; restore the file that belongs to "
                "them"
            )


def check_heads(where: str | Path, option: str, heads: int, width: int) -> None:
    """Check that attention heads share a width evenly.

    Raises:
        UserError: naming the option.
    """
    if heads < 1 or width < 1 or width % heads:
        raise UserError(f"{where}: {option} {heads} does not divide the width {width}; restore the original file")


def check_chosen_sizes(options: Any, part: str, width: int, width_option: str) -> None:
    """Check the sizes that a user chose for one stack of layers, before it is built.

    Args:
        options: of the model, with the fields `PART_layers`, `PART_ffn_embed_dim` and `PART_attention_heads`.
        part: such as `encoder`.
        width: of the stack.
        width_option: how the user knows the width, for the message.

    Raises:
        UserError: naming the option.
    """
    for name, least in (("layers", 0), ("ffn_embed_dim", 1), ("attention_heads", 1)):
        value = int(getattr(options, f"{part}_{name}"))
        if value < least:
            raise UserError(f"--{part}-{name.replace('_', '-')} {value}: is too small; give {least} or more")
    if width < 1:
        raise UserError(f"{width_option} {width}: is too small; give 1 or more")
    heads = int(getattr(options, f"{part}_attention_heads"))
    if width % heads:
        raise UserError(
            f"--{part}-attention-heads {heads}: does not divide {width_option} {width}; give a divisor of {width}"
        )


def _size(weights: Mapping[str, Tensor], name: str, dim: int) -> int:
    tensor = weights.get(name)
    return tensor.shape[dim] if tensor is not None and tensor.ndim > dim else 0
