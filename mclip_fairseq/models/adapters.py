"""Adapters (Houlsby et al., ICML 2019): a bottleneck after each layer of a frozen text encoder (AltCLIP's code)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mclip_fairseq.models.sizes import SizeGroup
from mclip_fairseq.models.text_encoder import TextEncoder

INIT_STD = 0.01
# There is no option for their number, only one for their width.
ADAPTERS = SizeGroup("adapters", "adapters.", {"adapter_dim": (("text_encoder.adapters.0.down.weight", 0),)})


class Adapter(nn.Module):
    """x + up(gelu(down(x))), with the tanh form of gelu; close to the identity at the start.

    Args:
        dim: width of the layer.
        hidden: width of the bottleneck.
    """

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(dim, hidden), nn.Linear(hidden, dim)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=INIT_STD)
            nn.init.zeros_(linear.bias)

    def forward(self, states: Tensor) -> Tensor:
        """(..., dim) -> (..., dim)."""
        adapted: Tensor = states + self.up(F.gelu(self.down(states), approximate="tanh"))
        return adapted


def add_adapters(encoder: TextEncoder, hidden: int, trained: bool) -> None:
    """Freeze an encoder and put an adapter after each of its layers, LayerNorm included.

    They become a part of the encoder, `encoder.adapters`, so that it runs with gradients while they are trained.

    Args:
        encoder: changed in place.
        hidden: width of the bottlenecks.
        trained: False freezes the adapters, too.
    """
    encoder.requires_grad_(False)
    adapters = nn.ModuleList([Adapter(encoder.dim, hidden) for _ in encoder.layers])
    encoder.add_module("adapters", adapters.requires_grad_(trained))
    hook_adapters(encoder, encoder.layers)


def hook_adapters(encoder: TextEncoder, layers: Sequence[nn.Module] | nn.ModuleList) -> None:
    """Let layers return their states adapted.

    Args:
        encoder: whose adapters are used; without any, nothing is done.
        layers: its own, or those of a copy for other runtimes.
    """
    adapters: Any = getattr(encoder, "adapters", ())
    for layer, adapter in zip(layers, adapters, strict=bool(adapters)):
        layer.register_forward_hook(functools.partial(_adapt, adapter))


def _adapt(adapter: nn.Module, layer: nn.Module, inputs: Any, output: Any) -> Any:
    """What a layer returns with its states adapted; layers return them alone, or first in a tuple."""
    return (adapter(output[0]), *output[1:]) if isinstance(output, tuple) else adapter(output)
