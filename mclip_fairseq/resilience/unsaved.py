"""What fairseq leaves out of checkpoints although the next step depends on it; it is kept in their extra state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairseq.optim import FP16Optimizer
from torch import Tensor

KEY = "mclip_unsaved"


def unsaved(trainer: Any) -> dict[str, Any]:
    """With --fp16, the parameters in full precision and the loss scaler; empty without.

    Args:
        trainer: fairseq's trainer.
    """
    optimizer = trainer.optimizer
    if not isinstance(optimizer, FP16Optimizer):
        return {}
    parameters = [parameter.detach() for parameter in full_precision(optimizer)]
    return {"fp32_params": parameters, "scaler": counters(optimizer.scaler)}


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Bring back what `unsaved` kept; does nothing if that is empty or --fp16 is now off.

    Args:
        trainer: fairseq's trainer, which has loaded the checkpoint with its optimizer.
        state: what `unsaved` returned.
    """
    if not (state and isinstance(trainer.optimizer, FP16Optimizer)):
        return
    with torch.no_grad():
        for parameter, kept in zip(full_precision(trainer.optimizer), state["fp32_params"], strict=True):
            parameter.copy_(kept)
    for name, value in state["scaler"].items():
        setattr(trainer.optimizer.scaler, name, value)


def full_precision(optimizer: FP16Optimizer) -> list[Tensor]:
    """The tensors that --fp16 updates: one per device, or one per parameter with --fp16-no-flatten-grads."""
    parameters = optimizer.fp32_params
    return list(parameters.values()) if isinstance(parameters, dict) else list(parameters)


def counters(scaler: Any) -> dict[str, float]:
    """Numbers of a loss scaler; empty without a scaler (--bf16)."""
    return {name: value for name, value in getattr(scaler, "__dict__", {}).items() if isinstance(value, int | float)}
