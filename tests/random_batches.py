"""Random batches for properties of losses."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import settings
from hypothesis import strategies as st
from torch import Tensor

seeds = st.integers(0, 10**6)
few = settings(max_examples=40)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def batch(seed: int, rows: int, dim: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """x and y, normalised, and ids with repetitions."""
    random = generator(seed)
    x, y = F.normalize(torch.randn(2, rows, dim, generator=random, dtype=torch.float64), dim=2)
    return x, y, torch.randint(0, max(1, rows // 2), (rows,), generator=random)


def same(ids: Tensor) -> Tensor:
    return ids[:, None] == ids
