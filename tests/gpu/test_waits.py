"""How often the CPU waits for the GPU in a training step: counted on the CPU by what would wait, and on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks.gpu.measuring import TINY, Report
from benchmarks.gpu.models import caption_batch, dictionary, mclip, mte, text_columns, to_device, training_step
from mclip_fairseq.criterions.mte import MTECriterion
from mclip_fairseq.criterions.trikd import TriKDCriterion, TriKDCriterionConfig
from mclip_fairseq.data.parallel import ParallelDataset
from mclip_fairseq.data.tokens import FlatTokens
from mclip_fairseq.losses import global_info_nce, global_one_to_k_info_nce
from mclip_fairseq.losses.matching import draw_matching_pairs, hard_negative_weights
from mclip_fairseq.losses.pairs import ChosenPairs, Encoded
from mclip_fairseq.resilience.signals import asked_to_stop
from mclip_fairseq.tasks.mte import MTETask, MTETaskConfig
from mclip_fairseq.tasks.sampled import on_cpu
from mclip_fairseq.tasks.trikd import TriKDTask, TriKDTaskConfig
from tests.gpu.waits import waits_of


def trikd_step(device: torch.device, kind: str) -> Callable[[], object]:
    pieces = dictionary(TINY.entries)
    model = mclip("base", pieces, True, device)
    task = TriKDTask(TriKDTaskConfig(data="none", save_dir="none", seed=1, autocast="none"), [pieces])
    criterion = TriKDCriterion(task, TriKDCriterionConfig())
    batch = caption_batch(TINY, model.feature_dim, text_columns(model, TINY, pieces)[kind])
    return training_step(task, model, criterion, to_device(batch, device))


def mte_step(device: torch.device, gradient: str) -> Callable[[], object]:
    pieces = dictionary(TINY.entries)
    model = mte(pieces, True, device)
    cfg = MTETaskConfig(data="none", save_dir="none", seed=1, langs="en,de,fr", autocast="none")
    task = MTETask(cfg, pieces)
    sides = [FlatTokens.from_sentences(list(torch.randint(5, 200, (4, length))), pieces, None) for length in (6, 7)]
    rows = ParallelDataset(sides[0], sides[1], 1, 2).rows(torch.arange(4).numpy())
    return training_step(
        task, model, MTECriterion(task, 0.1, 1.0, 2.0, 0.1, "sound", gradient), to_device(rows, device)
    )


# On a CPU the encoder asks for pads, and fairseq's positions compute with sizes in CPU tensors; a GPU does not wait.
CPU_ONLY = ("xlmr_encoder.py", "sinusoidal_positional_embedding.py")


def waits_on(device: torch.device, work: Callable[[], object], patch: pytest.MonkeyPatch) -> list[str]:
    work()  # the first step builds the optimizer's state
    if device.type == "cuda":
        return Report(device).waits(work)
    return [place for place in waits_of(work, patch) if not place.startswith(CPU_ONLY)]


@pytest.mark.parametrize("kind", ["tokens", "cached states", "kept states"])
def test_a_step_of_trikd_waits_once(device: torch.device, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """For the question whether the batch is finite."""
    places = waits_on(device, trikd_step(device, kind), monkeypatch)
    assert len(places) <= 1, places


@pytest.mark.parametrize("gradient", ["fused", "recomputed"])
def test_a_step_of_mte_waits_twice(device: torch.device, gradient: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As above, and once for fairseq's decoder, which asks for pads."""
    places = waits_on(device, mte_step(device, gradient), monkeypatch)
    assert len(places) <= 2, places


@pytest.mark.parametrize("kind", ["pairs", "equal ids", "1-to-K"])
def test_a_contrast_in_blocks_waits_at_most_once(
    kind: str, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where rows may have several positives, whose number is asked."""
    image, text = (F.normalize(torch.randn(rows, 4), dim=1).to(device).requires_grad_() for rows in (12, 24))
    ids, scale = torch.arange(12, device=device) // 2, torch.tensor(9.0, device=device)

    def work() -> None:
        if kind == "1-to-K":
            out = global_one_to_k_info_nce(image, text.view(12, 2, 4), scale, block_rows=5)
        else:
            own = ids if kind == "equal ids" else None
            out = global_info_nce(image, text[:12], scale, ids=own, block_rows=5)
        out.loss.backward()

    places = waits_on(device, work, monkeypatch)
    assert len(places) <= (kind == "equal ids"), places


def test_pairs_to_match_wait_once(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """How many there are: an image may have no negative."""
    image, text = (F.normalize(torch.randn(rows, 4), dim=1).to(device) for rows in (3, 6))
    states, padding = torch.randn(6, 5, 2, device=device), torch.zeros(6, 5, dtype=torch.bool, device=device)

    def work() -> None:
        encoded, first = Encoded(image, text, image.new_ones(()), states[:3], states, padding).of_all_ranks(3)
        weights = hard_negative_weights(encoded.image, encoded.text.view(3, 2, 4), encoded.scale, 1)
        ChosenPairs.of(encoded, draw_matching_pairs(weights), encoded.text[:, 0])
        assert first == 0

    places = waits_on(device, work, monkeypatch)
    assert len(places) <= 1, places


def test_waits_are_found(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The counter itself: each of these waits."""
    values = torch.arange(4.0, device=device)
    for work in (
        lambda: float(values[0]),
        lambda: values.tolist(),
        lambda: values[values > 1],
        lambda: bool(values.any()),
        lambda: torch.tensor([1.0], device=device),
        lambda: values.unique(),
    ):
        assert waits_on(device, work, monkeypatch)
    assert not waits_on(device, lambda: values.new_full((), 2.0) * values.sum(), monkeypatch)


def test_signals_make_one_rank_wait_for_nothing(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    assert waits_on(device, lambda: asked_to_stop(device), monkeypatch) == []


def test_logged_sums_come_by_one_copy(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs: list[dict[str, Any]] = [
        {"loss": torch.tensor(1 / 3, device=device), "hits": torch.tensor(2**30 + 1, device=device), "rows": 3},
        {"loss": torch.tensor(0.5, device=device, dtype=torch.float16), "rows": 4},
    ]
    copied = on_cpu(outputs)
    assert [{name: float(value) for name, value in output.items()} for output in copied] == [
        {name: float(value) for name, value in output.items()} for output in outputs
    ]
    assert [{name: getattr(v, "dtype", int) for name, v in output.items()} for output in copied] == [
        {name: getattr(v, "dtype", int) for name, v in output.items()} for output in outputs
    ]
    assert len(waits_on(device, lambda: on_cpu(outputs), monkeypatch)) <= 1
