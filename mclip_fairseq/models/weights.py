"""State dicts from files: tensors under string names, and exactly those of the model that takes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.storage.errors import UserError


def check_state_dict(place: str | Path, value: Any, remedy: str) -> dict[str, Tensor]:
    """Check that a value from a file is a state dict of dense tensors.

    Args:
        place: the file and the entry in it, for the message.
        value: what the file holds there; None if the entry is missing.
        remedy: what to do, for the message.

    Returns:
        `value`.

    Raises:
        UserError: it is not a dict from strings to dense tensors.
    """
    if not isinstance(value, dict):
        kind = "nothing" if value is None else f"a {type(value).__name__}"
        raise UserError(f"{place}: holds {kind} instead of a dict of weights; {remedy}")
    for name, tensor in value.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(f"{place}: holds a {type(tensor).__name__} under {name!r} instead of a tensor; {remedy}")
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise UserError(f"{place}: {name} is sparse or quantised; {remedy}")
    return value


def check_weights(given: Mapping[str, Tensor], expected: Mapping[str, Tensor], source: str | Path) -> None:
    """Check that weights are exactly those of a model.

    Args:
        given: the weights from a file.
        expected: the model's; only names and shapes are compared, so the meta device will do.
        source: the file, for the message.

    Raises:
        UserError: naming every weight that is missing, unknown or has a different shape.
    """
    differences = {
        "missing": sorted(set(expected) - set(given)),
        "unknown": sorted(set(given) - set(expected)),
        "different shape": [
            f"{name} {tuple(given[name].shape)} instead of {tuple(expected[name].shape)}"
            for name in sorted(set(given) & set(expected))
            if given[name].shape != expected[name].shape
        ],
    }
    if any(differences.values()):
        listed = "; ".join(f"{what}: {', '.join(names)}" for what, names in differences.items() if names)
        raise UserError(f"{source}: its weights are not those of the model; {listed}")
