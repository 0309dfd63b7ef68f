"""The X-projector as the released code and version 0.1.0 compute it."""

from __future__ import annotations

from torch import Tensor

from mclip_fairseq.models.pooling import pool_last
from mclip_fairseq.models.projectors import XProjector


def all_positions(projector: XProjector, states: Tensor, padding: Tensor) -> Tensor:
    """The plain formula: every layer at every position, of which one is kept."""
    for layer in projector.layers:
        states = layer(states.transpose(0, 1), encoder_padding_mask=padding).transpose(0, 1)
    return pool_last(states, padding)
