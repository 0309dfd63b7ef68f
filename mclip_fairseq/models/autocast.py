"""A model that computes in a lower precision, while its parameters and everything behind it stay in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Autocast:
    """Calls a model under `torch.autocast`; what it returns is float32 again, so losses are computed in full precision.

    fairseq switches autocast off around the criterion, so it has to be switched on inside. Everything but the call is
    the model's own.

    Args:
        model: possibly wrapped for distribution.
        dtype: to compute in.
    """

    def __init__(self, model: nn.Module, dtype: torch.dtype) -> None:
        self.model, self.dtype = model, dtype

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The model's answer with its floating-point tensors in float32."""
        device = next(self.model.parameters()).device.type
        with torch.autocast(device, dtype=self.dtype):
            answer = self.model(*args, **kwargs)
        return in_float32(answer)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)


def widened(values: Tensor) -> Tensor:
    """Values in float32 where they are of lower precision."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def unit(rows: Tensor) -> Tensor:
    """L2-normalised rows, (rows, dim), in float32 at least: in half precision, cosines would be off by 1e-3."""
    return F.normalize(widened(rows), dim=1)


def in_float32(value: Any) -> Any:
    """A tensor, or the tensors in dicts, lists and tuples, as float32 where they are of lower precision."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
    if isinstance(value, dict):
        return {key: in_float32(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(in_float32, value))
    if isinstance(value, list | tuple):
        return type(value)(map(in_float32, value))
    return value
