"""Numbers that released programs computed: where they are, and when ours agree with them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

Fixture = dict[str, Tensor]


def load_fixture(shared_dir: Path, name: str) -> Fixture:
    """The numeric arrays of a fixture as tensors; skips the test where the file is missing."""
    path = shared_dir / "fixtures" / name
    if not path.exists():
        pytest.skip(f"{path} is missing")
    with np.load(path, allow_pickle=False) as arrays:
        numbers = {key: np.asarray(arrays[key]) for key in arrays.files}
    return {key: torch.from_numpy(value) for key, value in numbers.items() if value.dtype.kind in "biuf"}


def same(got: Tensor, wanted: Tensor, tolerance: float = 1e-5) -> None:
    """Equal to 1e-5 of a number (or 1e-6, where it is small), or of the largest entry of a gradient."""
    limit = tolerance * float(wanted.abs().max()) if wanted.dim() else 1e-6
    torch.testing.assert_close(got.double(), wanted.double(), rtol=tolerance, atol=limit)


def gradients(loss: Tensor, *leaves: Tensor) -> tuple[Tensor, ...]:
    """The gradient of each leaf, zero where the loss does not depend on it; the graph is kept."""
    found = torch.autograd.grad(loss, leaves, retain_graph=True, allow_unused=True)
    return tuple(torch.zeros_like(leaf) if grad is None else grad for leaf, grad in zip(leaves, found, strict=True))
