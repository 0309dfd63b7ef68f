"""Stages of `mla` on two gloo ranks, and one rank with the same batches by --update-freq."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.mla_data import finetune, le, nlt
from tests.runs import state_of, train_on_ranks

pytestmark = pytest.mark.distributed
Train = Callable[..., str]


def test_two_ranks_train_as_one(mla_corpus: Path, photos: Path, run_train: Train, tmp_path: Path) -> None:
    """Batches of different languages on the two ranks: what neither uses must move on both counts alike.

    Fine-tuning on pixels likewise, on English; over both tokenizers it is run on two ranks and ends in a finite state.
    """
    stop = ("--disable-validation", "--max-update", 4)
    adam = ("--optimizer", "fused_adamw", "--adamw-eps", "1e-3")  # far from zero gradients, where rounding counts
    one = nlt(mla_corpus, photos, tmp_path / "one", *stop, *adam, "--update-freq", 2, "--seed", 3)
    two = nlt(mla_corpus, photos, tmp_path / "two", *stop, *adam, "--seed", 3)
    tuned = finetune(mla_corpus, photos, tmp_path / "tuned", "--disable-validation", "--max-update", 2, langs="en,de")
    run_train(*one)
    # One global batch, in one process or in two: the contrast of LE looks across ranks. The last step is uneven.
    order = ("--curriculum", 9, "--required-batch-size-multiple", 1, "--max-epoch", 1, "--disable-validation")
    contrast = {
        size: le(mla_corpus, photos, tmp_path / f"le{size}", *order, *adam, "--batch-size", size, langs="de")
        for size in (18, 9)
    }
    pixels = {
        size: finetune(
            *(mla_corpus, photos, tmp_path / f"en{size}", *order, *adam, "--max-update", 2, "--batch-size", size),
            langs="en",
        )
        for size in (18, 9)
    }
    run_train(*contrast[18])
    run_train(*pixels[18])
    logs = train_on_ranks(2, [two, tuned, contrast[9], pixels[9]], tmp_path)
    for log in logs:
        for text in log:
            assert text.splitlines()[-1] == "exit status 0", text[-2000:]
    for whole, shared in (("one", "two"), ("le18", "le9"), ("en18", "en9")):
        expected, given = state_of(tmp_path / whole)["model"], state_of(tmp_path / shared)["model"]
        assert expected.keys() == given.keys()
        for name, tensor in expected.items():
            torch.testing.assert_close(given[name], tensor, rtol=1e-5, atol=1e-5, msg=name)
    assert all(tensor.isfinite().all() for tensor in state_of(tmp_path / "tuned")["model"].values())
