"""What fairseq's checkpoints leave out, although the next step depends on it: kept in their extra state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairseq.optim import FP16Optimizer
from torch import Tensor

KEY = "mclip_unsaved"


def unsaved(trainer: Any) -> dict[str, Any]:
    """The parameters in full precision of --fp16 and its loss scaler; empty without --fp16.

    Args:
        trainer: fairseq's trainer.
    """
    optimizer = trainer.optimizer
    if not isinstance(optimizer, FP16Optimizer):
        return {}
    parameters = [parameter.detach() for parameter in full_precision(optimizer)]
    return {"fp32_params": parameters, "scaler": counters(optimizer.scaler)}


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Bring back what `unsaved` has kept; nothing where there is nothing, or --fp16 is no longer on.

    Args:
        trainer: fairseq's trainer, which has loaded the checkpoint with its optimizer.
        state: of `unsaved`.
    """
    if not (state and isinstance(trainer.optimizer, FP16Optimizer)):
        return
    with torch.no_grad():
        for parameter, kept in zip(full_precision(trainer.optimizer), state["fp32_params"], strict=True):
            parameter.copy_(kept)
    for name, value in state["scaler"].items():
        setattr(trainer.optimizer.scaler, name, value)


def full_precision(optimizer: FP16Optimizer) -> list[Tensor]:
    """What an optimizer of --fp16 really updates: a tensor per device, or per parameter (--fp16-no-flatten-grads)."""
    parameters = optimizer.fp32_params
    return list(parameters.values()) if isinstance(parameters, dict) else list(parameters)


def counters(scaler: Any) -> dict[str, float]:
    """Numbers of a loss scaler; none where there is none (--bf16)."""
    return {name: value for name, value in getattr(scaler, "__dict__", {}).items() if isinstance(value, int | float)}
