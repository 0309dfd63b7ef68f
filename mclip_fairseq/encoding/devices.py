"""Encoding on several devices of one machine: a share of the inputs for each, in a thread of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from torch import Tensor


def encode_in_shares(workers: Sequence[Callable[[Any], Tensor]], inputs: Any) -> Tensor:
    """Encode inputs on several devices; each takes every n-th, so that long and short ones are spread evenly.

    Args:
        workers: one per device: inputs -> (inputs, dim) on the CPU.
        inputs: a list, or a tensor with one input per row.

    Returns:
        (inputs, dim) in the order of the inputs.
    """
    count = len(workers)
    with ThreadPoolExecutor(count) as pool:
        shares = list(pool.map(lambda number: workers[number](inputs[number::count]), range(count)))
    out = torch.empty(len(inputs), *shares[0].shape[1:], dtype=shares[0].dtype)
    for number, share in enumerate(shares):
        out[number::count] = share
    return out
