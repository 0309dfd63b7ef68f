"""MLA's acquirers (Zhang et al., NeurIPS 2022): a bottleneck after each block of a frozen text tower, per language."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mclip_fairseq.storage.errors import UserError

LANGUAGE = re.compile(r"[A-Za-z0-9_-]+")


class Acquirer(nn.Module):
    """x + W_up ReLU(W_down x): what one language adds after one block.

    The start is torch's own for linear layers, as in the released code, so an untrained acquirer changes its input.

    Args:
        width: of the text tower.
        hidden: width inside.
    """

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """(..., width) -> (..., width)."""
        return x + self.up(F.relu(self.down(x)))


def make_acquirers(languages: Sequence[str], layers: int, width: int, hidden: int) -> nn.ModuleDict:
    """Language -> one acquirer per layer.

    Args:
        languages: codes.
        layers: of the text tower.
        width: of the text tower.
        hidden: width inside an acquirer; 0: every acquirer leaves its input as it is, and has no weights.

    Raises:
        UserError: a language whose name cannot be part of a weight's name.
    """
    for language in languages:
        if not LANGUAGE.fullmatch(language) or hasattr(nn.ModuleDict, language):
            raise UserError(f"--acquirers: {language!r} cannot name a language; write it as a code such as de or zh-CN")
    stacks = {
        language: nn.ModuleList(Acquirer(width, hidden) if hidden else nn.Identity() for _ in range(layers))
        for language in languages
    }
    return nn.ModuleDict(stacks)


def with_positions(text_model: Any, embedded: Tensor) -> Tensor:
    """(batch, length, width) token embeddings of CLIP's text tower -> the states before its first block."""
    states: Tensor = embedded + text_model.embeddings.position_embedding.weight[: embedded.shape[1]]
    return states


def block_states(text_model: Any, embedded: Tensor, acquirers: Iterable[nn.Module]) -> Iterator[Tensor]:
    """States of a text after each block of CLIP's text tower and the acquirer behind it.

    This is `CLIPTextModel.forward` with one line more. The language travels as an argument instead of as an attribute
    that hooks would read, so threads with different languages can share a model.

    Args:
        text_model: a `transformers.CLIPTextModel`.
        embedded: (batch, length, width) token embeddings, without positions.
        acquirers: one per block.

    Yields:
        (batch, length, width), once per block.
    """
    states = with_positions(text_model, embedded)
    # Everything but eager attention is causal by `is_causal` alone. Pads need no mask: they follow the pooled token.
    mask = causal_mask(states) if text_model.config._attn_implementation == "eager" else None
    for block, acquirer in zip(text_model.encoder.layers, acquirers, strict=True):
        states = acquirer(block(states, mask, is_causal=True))
        yield states


def causal_mask(states: Tensor) -> Tensor:
    """(1, 1, length, length), added to attention scores: 0 up to the diagonal, the least number beyond it."""
    length = states.shape[1]
    full = torch.full((length, length), torch.finfo(states.dtype).min, dtype=states.dtype, device=states.device)
    return full.triu(1)[None, None]


def pool_first(states: Tensor, tokens: Tensor, token: int) -> Tensor:
    """The states at the first occurrence of a token.

    Args:
        states: (batch, length, width).
        tokens: (batch, length) ids; each row holds `token`.
        token: the end of a text.

    Returns:
        (batch, width).
    """
    first = tokens.eq(token).int().argmax(dim=1)
    # `shape[0]`, because `len` would fix the size of the batch in an export.
    return states[torch.arange(states.shape[0], device=states.device), first]
