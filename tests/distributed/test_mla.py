"""Stages of `mla` on two gloo ranks, and one rank with the same batches by --update-freq."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.mla_data import finetune, nlt
from tests.runs import state_of, train_on_ranks

pytestmark = pytest.mark.distributed
Train = Callable[..., str]


def test_two_ranks_train_as_one(mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path) -> None:
    """Batches of different languages on the two ranks: what neither uses must move on both counts alike.

    Fine-tuning over both tokenizers is run on two ranks, too, and ends in one finite state.
    """
    stop = ("--disable-validation", "--max-update", 4)
    adam = ("--optimizer", "fused_adamw", "--adamw-eps", "1e-3")  # far from zero gradients, where rounding counts
    one = nlt(mla_corpus, photos, tmp_path / "one", *stop, *adam, "--update-freq", 2, "--seed", 3)
    two = nlt(mla_corpus, photos, tmp_path / "two", *stop, *adam, "--seed", 3)
    tuned = finetune(mla_corpus, photos, tmp_path / "tuned", "--disable-validation", "--max-update", 2, langs="en,de")
    run_train(*one)
    logs = train_on_ranks(2, [two, tuned], tmp_path)
    for log in logs:
        for text in log:
            assert text.splitlines()[-1] == "exit status 0", text[-2000:]
    expected, given = state_of(tmp_path / "one")["model"], state_of(tmp_path / "two")["model"]
    assert expected.keys() == given.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(given[name], tensor, rtol=1e-5, atol=1e-6, msg=name)
    assert all(tensor.isfinite().all() for tensor in state_of(tmp_path / "tuned")["model"].values())
