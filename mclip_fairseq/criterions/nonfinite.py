"""Batches whose loss or features are not finite: found before they count, on all ranks at once, and named."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from mclip_fairseq.losses.gather import objects_of_all_ranks, sum_over_ranks
from mclip_fairseq.storage.errors import UserError

SHOWN = 8


class NonFiniteError(UserError):
    """A loss or a feature is not finite."""


def count_nonfinite_rows(*features: Tensor | None) -> Tensor:
    """0-d, rows of any (batch, dim) matrix, one at least, that hold a value which is not finite."""
    counts = [(~torch.isfinite(matrix.detach()).all(dim=1)).sum() for matrix in features if matrix is not None]
    return torch.stack(counts).sum()


def find_nonfinite(
    loss: Tensor, bad_rows: Tensor | int, sample: Mapping[str, Any], dummy: bool
) -> tuple[list[str], bool]:
    """Which batches of this step are to blame, on all ranks alike; every rank must call it.

    One rank's features make the loss of every rank infinite once they are gathered, so a rank without fault of its own
    is blamed only when no rank has features that are not finite.

    Args:
        loss: 0-d, this rank's.
        bad_rows: this rank's rows with features that are not finite, before any gathering.
        sample: this rank's batch.
        dummy: whether it does not count.

    Returns:
        a description per guilty rank, empty if the step is sound; and whether the batch of any rank counts.
    """
    bad = loss.new_full((), bad_rows > 0, dtype=torch.bool) if isinstance(bad_rows, int) else bad_rows > 0
    flags = torch.stack([bad, ~torch.isfinite(loss.detach()).all(), torch.ones_like(bad)])
    own = flags.double() * (0.0 if dummy else 1.0)
    # The one place of a step at which the CPU waits for a GPU: a bad batch must not reach the gradient.
    features, losses, counted = sum_over_ranks(own).tolist()
    if not (features or losses):
        return [], bool(counted)
    guilty = bool(own[0 if features else 1])
    reports = objects_of_all_ranks(describe_samples(sample, "features" if features else "loss") if guilty else None)
    return [f"{report} on rank {rank}" for rank, report in enumerate(reports) if report is not None], True


def describe_samples(sample: Mapping[str, Any], what: str) -> str:
    """Which samples of which language: those with input that is not finite if there are any, else the batch."""
    rows, names = None, []
    for name, value in sample.get("net_input", {}).items():
        if isinstance(value, Tensor) and value.is_floating_point():
            bad = ~torch.isfinite(value.flatten(1)).all(dim=1)
            if bad.any():
                names.append(name)
                if len(bad) == len(sample["id"]):  # cached token states are not one row per sample
                    rows = bad if rows is None else rows | bad
    ids = sample["id"] if rows is None else sample["id"][rows.to(sample["id"].device)]
    shown = ", ".join(str(number) for number in ids[:SHOWN].tolist())
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    source = f" (the input {' and '.join(names)})" if names else ""
    return f"{what} of {sample.get('part', 'the batch')}, samples {shown}{more}{source}"


def zero_gradient(*modules: torch.nn.Module) -> Tensor:
    """0-d, a loss whose gradient is zero for every trained parameter, so that all of DDP's hooks fire as ever."""
    terms = [
        parameter.sum() * 0.0 for module in modules for parameter in module.parameters() if parameter.requires_grad
    ]
    return torch.stack([term.float() for term in terms]).sum()


def zeroed(log: Mapping[str, Any]) -> dict[str, Any]:
    """A log of the same entries, all of them zero."""
    return {name: torch.zeros_like(value) if isinstance(value, Tensor) else 0 for name, value in log.items()}
