"""The weighted mean of checkpoints: of one training's last ones, or of two models with one start."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.models.weights import check_state_dict
from mclip_fairseq.storage.checkpoints import load_checkpoint, untrained_bookkeeping
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.sealed import save_sealed

REMEDY = "give checkpoints of fairseq-train"


def average_checkpoints(files: Sequence[Path], output: Path, weights: Sequence[float] | None = None) -> None:
    """Write a checkpoint whose parameters are the weighted mean of others.

    Options, tokenizer and frozen parts are those of the first file. The state of the optimizer is left out, so that a
    training can start from the mean but not resume there.

    Args:
        files: two checkpoints of `fairseq-train` or more, of models with the same parameters and frozen parts.
        output: checkpoint to write.
        weights: one per file, which are divided by their sum; None: equal ones. A negative weight extrapolates.

    Raises:
        UserError: the files or the weights cannot be averaged.
    """
    shares = normalised(files, weights)
    if output.resolve() in (file.resolve() for file in files):
        raise UserError(f"{output}: is one of the checkpoints to average; give --output another name")
    first, *others = files
    state = load_checkpoint(first)
    stored = check_state_dict(f"{first}: model", state.get("model"), REMEDY)
    sums = {name: value.double() * shares[0] for name, value in stored.items() if value.is_floating_point()}
    for file, share in zip(others, shares[1:], strict=True):
        model = check_state_dict(f"{file}: model", load_checkpoint(file).get("model"), REMEDY)
        check_same_parameters(first, stored, file, model)
        for name, total in sums.items():
            total.add_(model[name].double(), alpha=share)
    mean: dict[str, Any] = {
        name: sums[name].to(value.dtype) if name in sums else value for name, value in stored.items()
    }
    history = state.get("optimizer_history") or [{}]
    state |= untrained_bookkeeping(str(history[-1].get("criterion_name", "")))
    save_sealed(state | {"model": mean}, output)


def normalised(files: Sequence[Path], weights: Sequence[float] | None) -> list[float]:
    """Shares that add up to 1.

    Raises:
        UserError: there are fewer than two files, another number of weights, or weights without a usable sum.
    """
    if len(files) < 2:
        raise UserError("one checkpoint has no mean; give two or more")
    if weights is None:
        return [1 / len(files)] * len(files)
    if len(weights) != len(files):
        raise UserError(f"--weights has {len(weights)} numbers for {len(files)} checkpoints; give one for each")
    total = sum(weights)
    if not math.isfinite(total) or total <= 0:
        raise UserError(f"--weights add up to {total:g}; give numbers whose sum is positive")
    return [weight / total for weight in weights]


def check_same_parameters(first: Path, wanted: Mapping[str, Tensor], file: Path, given: Mapping[str, Tensor]) -> None:
    """Refuse a checkpoint with other parameters, or other frozen parts, than the first.

    Raises:
        UserError: naming the parameter.
    """
    different = sorted(wanted.keys() ^ given.keys())
    if different:
        place = file if different[0] in wanted else first
        raise UserError(f"{place}: has no {different[0]}, which another checkpoint has; average models of one kind")
    for name, value in wanted.items():
        if value.shape != given[name].shape or value.dtype != given[name].dtype:
            raise UserError(
                f"{file}: {name} is {given[name].dtype} {tuple(given[name].shape)}, but in {first} it is "
                f"{value.dtype} {tuple(value.shape)}; average models of one kind"
            )
        # Whole numbers are counts and the identity of frozen parts, of which there is no mean.
        if not value.is_floating_point() and not torch.equal(value, given[name]):
            raise UserError(f"{file}: differs from {first} in {name}; average models with the same frozen parts")
