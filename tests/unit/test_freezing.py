"""What a checkpoint leaves out: frozen weights and buffers below a prefix, and nothing that is trained."""

from __future__ import annotations

import torch
from torch import nn

from mclip_fairseq.models.freezing import frozen_names, state_hash


def module() -> nn.Module:
    """`text.0` is frozen, `text.1` is trained but for its buffers, `head` is frozen outside the prefix."""
    made = nn.ModuleDict({"text": nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)), "head": nn.Linear(2, 2)})
    made["text"][0].requires_grad_(False)  # type: ignore[index]
    made["head"].requires_grad_(False)
    return made


def test_a_part_that_is_partly_trained_keeps_what_is_trained() -> None:
    assert frozen_names(module(), ["text."]) == {
        *("text.0.weight", "text.0.bias"),
        *("text.1.running_mean", "text.1.running_var", "text.1.num_batches_tracked"),
    }


def test_both_names_of_a_tied_weight_are_left_out() -> None:
    made = module()
    made["text"].add_module("tied", made["text"][0])  # type: ignore[index]
    assert {"text.0.weight", "text.tied.weight"} <= frozen_names(made, ["text."])


def test_the_hash_of_a_state_knows_names_values_types_and_shapes_but_no_order() -> None:
    state = {"a": torch.zeros(2, 3), "b": torch.ones(1, dtype=torch.int64)}
    assert state_hash(dict(reversed(state.items()))) == state_hash(state)
    others = [
        {"a": state["a"], "c": state["b"]},
        state | {"b": torch.zeros(1, dtype=torch.int64)},
        state | {"a": torch.zeros(2, 3, dtype=torch.float64)},
        state | {"a": torch.zeros(3, 2)},
        {"a": state["a"]},
    ]
    assert len({state_hash(each) for each in [state, *others]}) == 6
