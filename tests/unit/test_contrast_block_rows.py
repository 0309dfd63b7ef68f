"""`--contrast-block-rows`: every criterion with a contrast computes it in blocks, with the same values."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mclip_fairseq.criterions.ccrk import CCRKCriterion
from mclip_fairseq.criterions.distillation import DistillationCriterion, DistillationCriterionConfig
from mclip_fairseq.criterions.image_text import ImageTextCriterion
from mclip_fairseq.criterions.terms import TermsCriterion
from mclip_fairseq.criterions.trikd import TriKDCriterion, TriKDCriterionConfig
from mclip_fairseq.losses import contrastive, one_to_k, tiled

ROWS, CAPTIONS = 6, 2


def criterion(name: str, block_rows: int | None) -> TermsCriterion:
    """One of the criterions, of a task with this option, or without it."""
    options = {} if block_rows is None else {"contrast_block_rows": block_rows}
    task: Any = SimpleNamespace(cfg=SimpleNamespace(pair_language="", **options), images=None)
    if name == "trikd":
        return TriKDCriterion(task, TriKDCriterionConfig(positives="image"))
    if name == "distillation":
        return DistillationCriterion(task, DistillationCriterionConfig(mse_weight=0.0, contrastive_weight=1.0))
    if name == "image_text":
        return ImageTextCriterion(task, "pair", "both")
    return CCRKCriterion(task, 1.0, 0.0, 0.0, "k", "probability")


def answer(name: str) -> dict[str, Tensor | None]:
    """What a model returns, with parameters as its features."""
    torch.manual_seed(0)
    rows = {"text": ROWS * (CAPTIONS if name == "ccrk" else 1), "image": ROWS, "teacher_text": ROWS, "student": ROWS}
    out: dict[str, Any] = {key: F.normalize(torch.randn(n, 5), dim=1).requires_grad_() for key, n in rows.items()}
    scale = torch.tensor(9.0, requires_grad=True)
    more = {"anchor": torch.zeros(()), "match": None, "words": None, "scale": scale, "distillation_scale": scale}
    return out | more


def loss_and_gradients(name: str, block_rows: int | None) -> list[Tensor]:
    """Of one batch."""
    out = answer(name)
    sample: dict[str, Any] = {"nsentences": ROWS, "ntokens": ROWS, "net_input": {}, "group": torch.arange(ROWS) // 2}
    if name == "ccrk":
        sample["captions"] = CAPTIONS
    model: Any = lambda **inputs: out  # noqa: E731
    loss = criterion(name, block_rows).outcome(model, sample).loss
    loss.backward()
    return [loss.detach(), *(v.grad for v in out.values() if v is not None and v.grad is not None)]


@pytest.mark.parametrize("name", ["trikd", "distillation", "image_text", "ccrk"])
def test_the_option_chooses_blocks_and_changes_no_value(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks: list[int] = []

    def noted(*args: Any) -> Any:
        blocks.append(args[-1].block_rows)
        return tiled.tiled_sums(*args)

    monkeypatch.setattr(contrastive, "tiled_sums", noted)
    monkeypatch.setattr(one_to_k, "tiled_sums", noted)
    whole = loss_and_gradients(name, None)
    assert len(whole) > 2
    for all_rows in (-1, 0):
        assert all(map(torch.equal, loss_and_gradients(name, all_rows), whole))
    assert blocks == []
    for one, other in zip(loss_and_gradients(name, 2), whole, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-6, atol=1e-6)
    assert set(blocks) == {2}
