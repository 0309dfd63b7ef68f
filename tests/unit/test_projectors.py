"""The X-projector, whose last layer computes one position, against fairseq's layers at all positions."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from mclip_fairseq.models.pooling import pool_last
from mclip_fairseq.models.projectors import XProjector, attend_once
from tests.plain_projector import all_positions

DIM, LENGTHS = 48, (7, 1, 4)


def projector_of(layers: int, dropout: float = 0.0) -> XProjector:
    """With weights of the size that training gives, biases included."""
    projector = XProjector(layers=layers, dim=DIM, ffn_dim=96, heads=4, dropout=dropout, attention_dropout=dropout)
    for parameter in projector.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    return projector


def sentences(left: bool) -> tuple[Tensor, Tensor]:
    """Random states, and padding on either side."""
    position = torch.arange(max(LENGTHS))
    padding = torch.stack([(position < max(LENGTHS) - n) if left else (position >= n) for n in LENGTHS])
    return torch.randn(len(LENGTHS), max(LENGTHS), DIM), padding


def gradients(projector: XProjector, way: Callable[..., Tensor], states: Tensor, padding: Tensor) -> list[Tensor]:
    """Gradients of the states and of every parameter."""
    states = states.clone().requires_grad_()
    output = way(states, padding)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    return list(torch.autograd.grad((output * weights).sum(), [states, *projector.parameters()]))


@pytest.mark.parametrize("layers", [0, 1, 2, 3])
@pytest.mark.parametrize("left", [False, True])
def test_one_position_equals_all_positions(layers: int, left: bool) -> None:
    projector, (states, padding) = projector_of(layers).eval(), sentences(left)
    torch.testing.assert_close(
        projector(states, padding), all_positions(projector, states, padding), rtol=1e-5, atol=3e-6
    )
    exact = projector.double()
    expected = all_positions(exact, states.double(), padding)
    torch.testing.assert_close(exact(states.double(), padding), expected, rtol=0, atol=1e-12)


def test_normalised_outputs_of_the_published_size_differ_by_rounding_only() -> None:
    projector = XProjector(layers=2, dim=768, ffn_dim=3072, heads=12, dropout=0.3, attention_dropout=0.1).eval()
    states, padding = torch.randn(8, 24, 768), torch.arange(24) >= torch.arange(17, 25)[:, None]
    with torch.no_grad():
        rows = [
            torch.nn.functional.normalize(way, dim=1)
            for way in (projector(states, padding), all_positions(projector, states, padding))
        ]
    assert float((rows[0] - rows[1]).abs().max()) < 1e-7


@pytest.mark.parametrize("layers", [1, 2])
def test_gradients_equal_those_of_all_positions(layers: int) -> None:
    projector, (states, padding) = projector_of(layers).double().train(), sentences(True)
    ours = gradients(projector, projector, states.double(), padding)
    plain = gradients(projector, lambda *inputs: all_positions(projector, *inputs), states.double(), padding)
    for one, other in zip(ours, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_states_of_pads_do_not_count_and_others_do() -> None:
    projector, (states, padding) = projector_of(2).eval(), sentences(False)
    expected = projector(states, padding)
    torch.testing.assert_close(projector(states.masked_fill(padding[..., None], 9.0), padding), expected)
    states[0, 0] += 1.0  # a token that is not pooled
    assert not torch.allclose(projector(states, padding)[0], expected[0])


def test_dropout_acts_on_the_pooled_position_without_bias() -> None:
    """The attention's output is linear in its weights, so its mean over dropouts is the output without dropout."""
    projector, (states, padding) = projector_of(1, dropout=0.5), sentences(False)
    layer: Any = projector.layers[0]
    attention, query = layer.self_attn, pool_last(states, padding)
    with torch.no_grad():
        draws = torch.stack([attend_once(attention, query, states, padding) for _ in range(4000)])
        expected = attend_once(attention.eval(), query, states, padding)
    error = draws.std(0) / len(draws) ** 0.5
    assert float(draws.std(0).min()) > 0
    assert float(((draws.mean(0) - expected) / error).abs().mean()) < 1.5
