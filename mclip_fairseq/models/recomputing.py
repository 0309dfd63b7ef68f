"""fairseq's transformer layers with less memory: what is cheap to compute again is not kept for the backward pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from fairseq.modules.fairseq_dropout import FairseqDropout
from fairseq.modules.gelu import gelu_accurate
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# torch has the tanh form in one kernel, where fairseq's formula keeps five tensors.
IN_ONE_KERNEL = {gelu_accurate: functools.partial(F.gelu, approximate="tanh")}


class ActivatedLinear(nn.Linear):
    """`linear(activation(x))` that keeps x and computes the activation again in the backward pass.

    Args:
        linear: whose parameters it takes over, under their names.
        activation: applied to the input.
    """

    def __init__(self, linear: nn.Linear, activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """(..., in features) -> (..., out features)."""
        if not torch.is_grad_enabled():
            return self.plain(x)
        # The product itself is not repeated: checkpoint stops as soon as it has its input.
        projected: Tensor = checkpoint(self.plain, x, use_reentrant=False, preserve_rng_state=False)
        return projected

    def plain(self, x: Tensor) -> Tensor:
        """The same without a gradient's memory in mind."""
        return super().forward(self.activation(x))


class BoolMaskDropout(FairseqDropout):
    """fairseq's dropout with a bool mask; `F.dropout` keeps a float one on a CPU. The draws are the same."""

    def forward(self, x: Tensor, inplace: bool = False) -> Tensor:
        """Any shape; `inplace` changes nothing."""
        if self.p == 0 or not (self.training or self.apply_during_inference):
            return x
        return torch.native_dropout(x, self.p, True)[0]


def keep_less(layers: Iterable[nn.Module]) -> None:
    """Let fairseq's encoder or decoder layers keep about 60 % of what they do; parameters keep their names.

    Args:
        layers: changed in place.
    """
    for layer in layers:
        for module in list(layer.modules()):
            for name, child in module.named_children():
                if type(child) is FairseqDropout:
                    compact = BoolMaskDropout(child.p, child.module_name)
                    compact.apply_during_inference = child.apply_during_inference
                    setattr(module, name, compact)
        _activate_late(layer)


def _activate_late(layer: Any) -> None:
    """Move a layer's activation into its second linear layer, unless there is dropout between them."""
    layer.activation_fn = IN_ONE_KERNEL.get(layer.activation_fn, layer.activation_fn)
    if layer.activation_dropout_module.p == 0 and type(layer.fc2) is nn.Linear:
        layer.fc2 = ActivatedLinear(layer.fc2, layer.activation_fn)
        layer.activation_fn = nn.Identity()


def recompute(layers: Iterable[nn.Module]) -> None:
    """Keep nothing of layers but their input: the backward pass computes them again, with the same draws of dropout.

    Unlike fairseq's `checkpoint_wrapper`, this allows a layer to be used twice in one step of DDP.

    Args:
        layers: changed in place; parameters keep their names.
    """
    for layer in layers:
        layer.forward = functools.partial(_recomputed, layer.forward)


def _recomputed(forward: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*arguments, **options)
    return checkpoint(forward, *arguments, use_reentrant=False, **options)
