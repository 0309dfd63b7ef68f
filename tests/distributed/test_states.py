"""Two ranks encode half of the token states each; with folders of their own, each encodes all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.runs import RANK, gloo_group, start_ranks

pytestmark = pytest.mark.distributed


def compute(rank: int, world: int, store: str, folder: str, shared: bool) -> None:
    """One rank."""
    from mclip_fairseq.data import states
    from tests.unit.test_states import model_and_captions

    vars(states)["batches_by_tokens"] = lambda sizes, cost: np.array_split(np.argsort(sizes), 5)
    encoded, plain = list[int](), states.StateWriter.encoded

    def counted(self: states.StateWriter, batches: Any) -> Any:
        encoded.append(len(batches))
        return plain(self, batches)

    vars(states)["StateWriter"].encoded = counted
    model, captions = model_and_captions()
    with gloo_group(rank, world, store):
        place = Path(folder) if shared else Path(folder) / str(rank)
        for _ in range(2):  # the second time, it is there
            cache = states.cached_states(place, captions, model.text_encoder, torch.device("cpu"), "float32")
    assert encoded == [3 - rank if shared else 5]
    assert [file.suffix for file in place.iterdir()] == [".npy"]
    np.save(f"{store}.{rank}.npy", cache.values)


@pytest.mark.parametrize("shared", [True, False])
def test_ranks_share_the_states(shared: bool, tmp_path: Path) -> None:
    from mclip_fairseq.data.states import cached_states
    from tests.unit.test_states import model_and_captions

    start_ranks("compute", 2, (str(tmp_path / "store"), str(tmp_path / "cache"), shared), file=__file__)
    model, captions = model_and_captions()
    one = cached_states(tmp_path / "one", captions, model.text_encoder, torch.device("cpu"), "float32")
    for rank in range(2):
        np.testing.assert_allclose(np.load(tmp_path / f"store.{rank}.npy"), one.values, atol=1e-6)


if __name__ == RANK:
    name, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[name](*values)
