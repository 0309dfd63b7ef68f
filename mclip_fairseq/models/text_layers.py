"""Text states after chosen blocks of CLIP's text tower, at the end of a text: what MLA's `kd_layers` compares.

Layer 0 is the embeddings with their positions, layer i the state after block i, without the final norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.models.acquirers import pool_first
from mclip_fairseq.models.mla_parts import clip_vocabulary, text_tower
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.errors import UserError


def parse_layers(text: str, option: str, blocks: int) -> list[int]:
    """The layers that an option names.

    Args:
        text: numbers separated by commas; empty for none.
        option: for the message.
        blocks: of the text tower. The last block is not a layer of its own: the features come from it.

    Raises:
        UserError: something else, layers that do not exist, or not in ascending order.
    """
    items = [item.strip() for item in text.split(",")] if text else []
    layers = [int(item) if item.isdecimal() else -1 for item in items]
    if any(not 0 <= layer < blocks for layer in layers) or layers != sorted(set(layers)):
        raise UserError(f"{option} is {text!r}; give numbers from 0 to {blocks - 1} in ascending order")
    return layers


class LayerStates:
    """English texts as a teacher's states after some layers, and its features behind them.

    Args:
        teacher: a CLIP.
        layers: comma-separated numbers.

    Raises:
        UserError: the teacher has no text tower of CLIP, or no such layers.
    """

    def __init__(self, teacher: DualEncoderTeacher, layers: str) -> None:
        self.teacher = teacher
        self.text_model, _ = text_tower(teacher.model)
        config = self.text_model.config
        self.layers = parse_layers(layers, "--text-layers", config.num_hidden_layers)
        self.end = clip_vocabulary(config)[1]
        self.dim = len(self.layers) * config.hidden_size + teacher.dim

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, **others: Tensor) -> Tensor:
        """(n, length) inputs from `tokenize` -> (n, dim): a state for each layer, then the features."""
        states = self.text_model(input_ids=input_ids, output_hidden_states=True, **others).hidden_states
        pooled = [pool_first(states[layer], input_ids, self.end) for layer in self.layers]
        return torch.cat([*pooled, self.teacher.encode_text(input_ids, **others)], dim=1)


def split_layers(values: Tensor, layers: Sequence[int], dim: int) -> tuple[list[Tensor], Tensor]:
    """What `LayerStates` has put side by side.

    Args:
        values: (n, layers x width + dim).
        layers: that are in it.
        dim: columns of the features.

    Returns:
        one (n, width) state for each layer, and the (n, dim) features.
    """
    if not layers:
        return [], values
    width = (values.shape[1] - dim) // len(layers)
    *states, features = values.split([width] * len(layers) + [dim], dim=1)
    return list(states), features


def check_layers(store: Any, layers: str) -> None:
    """Refuse text features that do not hold the states of the layers that are compared.

    Args:
        store: the feature directory.
        layers: comma-separated numbers; empty for none.

    Raises:
        UserError: other layers.
    """
    if store.text_layers != layers:
        raise UserError(
            f"{store.paths[0]}: holds states of the layers {store.text_layers or 'none'}, but --distill-layers is "
            f"{layers or 'none'}; make the features with mclip-features --text-layers and the same numbers"
        )
