"""Sentences of similar length are encoded together on a CPU: what `run_layers` gives, with fewer pads."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mclip_fairseq.models import xlmr_encoder
from mclip_fairseq.models.mclip import MCLIPModelConfig
from mclip_fairseq.models.xlmr_encoder import XLMREncoder, run_by_length, run_layers
from tests.unit.test_states import SIZES, fifty_pieces

LENGTHS = [2, 12, 3, 5, 6, 2, 4, 11, 3, 7]
PAD = 1


def batch_of(lengths: list[int], left: bool) -> Tensor:
    """Random ids, padded on one side."""
    generator = torch.Generator().manual_seed(1)
    tokens = torch.full((len(lengths), max(lengths)), PAD)
    for row, length in enumerate(lengths):
        columns = slice(-length, None) if left else slice(length)
        tokens[row, columns] = torch.randint(4, 50, (length,), generator=generator)
    return tokens


@pytest.fixture
def stack() -> Any:
    torch.manual_seed(0)
    return XLMREncoder.build("", MCLIPModelConfig(**SIZES), fifty_pieces()).eval().encoder.sentence_encoder


@pytest.mark.parametrize("left", [False, True])
def test_values_and_gradients_are_those_of_run_layers(stack: Any, left: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(xlmr_encoder, "FEW_TOKENS", 4)
    tokens = batch_of(LENGTHS, left)
    weights = torch.randn(*tokens.shape, 16) * tokens.ne(PAD)[..., None]
    results = []
    for encode in (run_layers, run_by_length):
        stack.zero_grad(set_to_none=True)
        states = encode(stack, tokens)
        (states * weights).sum().backward()
        results.append((states, {name: weight.grad for name, weight in stack.named_parameters()}))
    (expected, gradients), (states, own) = results
    kept = tokens.ne(PAD)
    torch.testing.assert_close(states[kept], expected[kept])
    torch.testing.assert_close(own, gradients)
    assert not states[0, 5:-5].any(), "pads that were not computed are zeros"


def test_fewer_pads_are_computed(stack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Halves of the longest: 12 to 7, then 6 to 4, then 3 and 2."""
    shapes: list[tuple[int, int]] = []

    def counted(layers: Any, tokens: Tensor) -> Tensor:
        shapes.append((tokens.shape[0], tokens.shape[1]))
        return run_layers(layers, tokens)

    monkeypatch.setattr(xlmr_encoder, "run_layers", counted)
    tokens = batch_of(LENGTHS, left=False)
    run_by_length(stack, tokens)
    assert shapes == [(10, 12)], "few tokens stay together"
    shapes.clear()
    monkeypatch.setattr(xlmr_encoder, "FEW_TOKENS", 4)
    run_by_length(stack, tokens)
    assert shapes == [(3, 12), (3, 6), (4, 3)]
