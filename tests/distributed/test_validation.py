"""Retrieval in validation: two ranks encode their share of the batches, and find what one process finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mclip_fairseq.tasks import validation_retrieval
from mclip_fairseq.tasks.validation_retrieval import validation_recalls
from tests.runs import RANK, gloo_group, start_ranks

pytestmark = pytest.mark.distributed
CAPTIONS, IMAGES, BATCHES = {"en:0": 38, "de:0": 7, "de:1": 4, "bare:0": 5}, 12, 7


class Captions:
    """Features of captions and of their images, in the place of a dataset."""

    def __init__(self, number: int, count: int, with_images: bool) -> None:
        generator = torch.Generator().manual_seed(number)
        gallery = torch.randn(IMAGES, 6, generator=torch.Generator().manual_seed(9))
        self.group = torch.randint(IMAGES, (count,), generator=generator)
        self.image = gallery[self.group]
        self.text = self.image + torch.randn(count, 6, generator=generator)
        self.sizes, self.names = np.full(count, 4), {"text"} | ({"image_features"} if with_images else set())

    def rows(self, rows: Any) -> dict[str, Any]:
        return {"net_input": {"text": self.text[rows], "image": self.image[rows]}, "group": self.group[rows]}


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight, self.calls = nn.Parameter(torch.ones(())), 0

    def forward(self, text: Tensor, image: Tensor) -> dict[str, Tensor]:
        self.calls += 1
        return {"text": self.weight * text, "image": self.weight * image}


def parts() -> Any:
    return {name: Captions(n, count, name != "bare:0") for n, (name, count) in enumerate(CAPTIONS.items())}


def validate() -> tuple[dict[str, float], int, int]:
    """Recalls, and how often the model and the hook between batches were called."""
    validation_retrieval.BATCH = 8
    model, hooks = Model(), list[int]()
    recalls = validation_recalls(model.train(), parts(), lambda: hooks.append(1))
    assert model.training
    return recalls, model.calls, len(hooks)


def rank_validates(rank: int, world: int, store: str) -> None:
    """One rank."""
    with gloo_group(rank, world, store):
        recalls, calls, hooks = validate()
        assert validation_recalls(Model(), {"bare:0": parts()["bare:0"]}, lambda: None) == {}
    assert calls == hooks == -(-BATCHES // world), "the last round has one batch for two ranks"
    torch.save(recalls, f"{store}.{rank}")


def test_ranks_share_the_retrieval(tmp_path: Path) -> None:
    start_ranks("rank_validates", 2, (str(tmp_path / "store"),), file=__file__)
    alone, calls, hooks = validate()
    assert calls == hooks == BATCHES
    assert alone.keys() == {"mean_recall", "mean_recall_en", "mean_recall_de"}
    assert 20 < alone["mean_recall"] < 100
    for rank in range(2):
        assert torch.load(f"{tmp_path}/store.{rank}", weights_only=True) == pytest.approx(alone)


if __name__ == RANK:
    name, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[name](*values)
