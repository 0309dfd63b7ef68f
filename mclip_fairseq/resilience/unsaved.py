"""What fairseq leaves out of checkpoints although the next step depends on it; it is kept in their extra state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from fairseq.optim import FP16Optimizer, MemoryEfficientFP16Optimizer
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau

KEY = "mclip_unsaved"
SCALED = (FP16Optimizer, MemoryEfficientFP16Optimizer)
# Of torch's schedule: fairseq stores the last epoch, but counts it up when it loads a checkpoint.
PLATEAU = ("num_bad_epochs", "cooldown_counter", "last_epoch")


def unsaved(trainer: Any) -> dict[str, Any]:
    """With --fp16, the parameters in full precision and the loss scaler; a plateau schedule's counters; else empty.

    Args:
        trainer: fairseq's trainer.
    """
    state: dict[str, Any] = {}
    if isinstance(trainer.optimizer, FP16Optimizer):
        state["fp32_params"] = [parameter.detach() for parameter in full_precision(trainer.optimizer)]
    if isinstance(trainer.optimizer, SCALED):
        state["scaler"] = counters(trainer.optimizer.scaler)
    watching = watching_schedule(trainer)
    if watching is not None:
        state["plateau"] = {name: getattr(watching, name) for name in PLATEAU}
    return state


def restore(trainer: Any, state: Mapping[str, Any]) -> None:
    """Bring back what `unsaved` kept, of what the trainer still has.

    Args:
        trainer: fairseq's trainer, which has loaded the checkpoint with its optimizer.
        state: what `unsaved` returned.
    """
    if "fp32_params" in state and isinstance(trainer.optimizer, FP16Optimizer):
        with torch.no_grad():
            for parameter, kept in zip(full_precision(trainer.optimizer), state["fp32_params"], strict=True):
                parameter.copy_(kept)
    if "scaler" in state and isinstance(trainer.optimizer, SCALED):
        for name, value in state["scaler"].items():
            setattr(trainer.optimizer.scaler, name, value)
    watching = watching_schedule(trainer)
    if "plateau" in state and watching is not None and not trainer.cfg.checkpoint.reset_lr_scheduler:
        for name in PLATEAU:
            setattr(watching, name, state["plateau"][name])


def watching_schedule(trainer: Any) -> ReduceLROnPlateau | None:
    """The schedule of torch behind --lr-scheduler reduce_lr_on_plateau; None with any other."""
    schedule = getattr(trainer.lr_scheduler, "lr_scheduler", None)
    return schedule if isinstance(schedule, ReduceLROnPlateau) else None


def full_precision(optimizer: FP16Optimizer) -> list[Tensor]:
    """The tensors that --fp16 updates: one per device, or one per parameter with --fp16-no-flatten-grads."""
    parameters = optimizer.fp32_params
    return list(parameters.values()) if isinstance(parameters, dict) else list(parameters)


def counters(scaler: Any) -> dict[str, float]:
    """Numbers of a loss scaler; empty without a scaler (--bf16)."""
    return {name: value for name, value in getattr(scaler, "__dict__", {}).items() if isinstance(value, int | float)}
