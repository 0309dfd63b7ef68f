"""`--fresh-lr-multiplier`: a larger learning rate for what the model marks, whatever the schedule sets."""

from argparse import Namespace
from typing import Any

import pytest
import torch

from mclip_fairseq.optim.fused_adamw import FusedAdamW


def optimizer(params: list[torch.nn.Parameter], **options: Any) -> FusedAdamW:
    defaults = {"adamw_betas": "(0.9, 0.999)", "adamw_eps": 1e-8, "weight_decay": 0.1, "lr": [0.5]}
    settings: Any = Namespace(**(defaults | {"fresh_lr_multiplier": 2.0} | options))
    return FusedAdamW(settings, params)


def parameters() -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.ones(shape)) for shape in ((2, 2), (2,), (2, 2), (2,))]
    for param in params[2:]:
        param.fresh = True  # type: ignore[attr-defined]
    return params


def test_fresh_parameters_move_twice_as_far_after_the_schedule_has_set_the_rate() -> None:
    params = parameters()
    trained = optimizer(params, weight_decay=0.0)
    trained.set_lr(0.01)  # as every one of fairseq's schedules does before a step
    for param in params:
        param.grad = torch.ones_like(param)
    trained.step()
    moved = [float((1 - param.detach()).mean()) for param in params]
    assert moved == pytest.approx([0.01, 0.01, 0.02, 0.02], rel=1e-5)
    assert trained.get_lr() == 0.01


def test_weight_decay_follows_the_rate_and_spares_vectors() -> None:
    params = parameters()
    trained = optimizer(params)
    trained.set_lr(0.01)
    for param in params:
        param.grad = torch.zeros_like(param)
    trained.step()
    left = [float(param.detach().mean()) for param in params]
    assert left == pytest.approx([1 - 0.001, 1, 1 - 0.002, 1], rel=1e-6)


def test_a_restored_optimizer_keeps_its_own_factors() -> None:
    params = parameters()
    first = optimizer(params)
    first.set_lr(0.01)
    second = optimizer(parameters(), fresh_lr_multiplier=3.0)
    second.load_state_dict(first.state_dict(), {})
    assert [group["lr"] for group in second.param_groups] == pytest.approx([0.01, 0.01, 0.03, 0.03])
    second.set_lr(0.1)
    assert [group["lr"] for group in second.param_groups] == pytest.approx([0.1, 0.1, 0.3, 0.3])


def test_without_a_multiplier_the_groups_are_as_they_were() -> None:
    assert len(optimizer(parameters(), fresh_lr_multiplier=1.0).param_groups) == 2


def test_a_multiplier_without_anything_to_multiply_is_refused() -> None:
    with pytest.raises(ValueError, match="no parameter is marked as fresh"):
        optimizer([torch.nn.Parameter(torch.ones(2, 2))])
    with pytest.raises(ValueError, match="--fresh-lr-multiplier is -1"):
        optimizer(parameters(), fresh_lr_multiplier=-1.0)
