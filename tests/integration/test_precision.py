"""--autocast bfloat16: the model computes in bfloat16, everything behind it and every parameter stays in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from torch import nn

from mclip_fairseq.models.autocast import Autocast, in_float32
from mclip_fairseq.tasks.sampled import SampledTask
from tests.integration.test_resume import options
from tests.runs import caption_options, difference, losses_of, state_of

Train = Callable[..., str]


class Answer(NamedTuple):
    features: torch.Tensor
    extra: dict[str, object]


class Linear(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.seen = nn.Linear(4, 4), torch.float32

    def forward(self, x: torch.Tensor) -> Answer:
        out = self.layer(x)
        self.seen = out.dtype
        return Answer(out, {"ids": torch.arange(2), "more": [out, None, "text"]})


def test_the_call_is_lowered_and_its_answer_raised() -> None:
    model = Linear()
    answer = Autocast(model, torch.bfloat16)(torch.randn(2, 4))
    assert model.seen == torch.bfloat16
    assert isinstance(answer, Answer)
    assert answer.features.dtype == torch.float32
    assert answer.extra["more"][0].dtype == torch.float32  # type: ignore[index]
    assert answer.extra["ids"].dtype == torch.int64  # type: ignore[attr-defined]
    answer.features.sum().backward()
    assert model.layer.weight.grad is not None
    assert model.layer.weight.grad.dtype == torch.float32
    assert Autocast(model, torch.bfloat16).layer is model.layer
    assert in_float32(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("task", ["mte", "trikd"])
def test_a_training_in_bfloat16(task: str, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """Close to float32, but not equal to it; parameters and moments are float32, and it resumes exactly."""
    common = ("--num-workers", "0", "--log-interval", "1", "--dropout", "0")
    lowered = ("--autocast", "bfloat16")
    full = run_train(*options(tiny_corpus, task, *common, "--save-dir", tmp_path / "full", "--max-update", "4"))
    log = run_train(*options(tiny_corpus, task, *common, *lowered, "--save-dir", tmp_path / "low", "--max-update", "4"))
    first, second = (float(losses_of(text)[1]["loss"]) for text in (full, log))
    assert losses_of(full) != losses_of(log)
    assert first == pytest.approx(second, rel=0.02)
    state = state_of(tmp_path / "low")
    moments = [tensor for entry in state["last_optimizer_state"]["state"].values() for tensor in entry.values()]
    tensors = [tensor for tensor in [*state["model"].values(), *moments] if torch.is_tensor(tensor)]
    assert {tensor.dtype for tensor in tensors if tensor.is_floating_point()} == {torch.float32}
    assert difference(state["model"], state_of(tmp_path / "full")["model"]) != ""
    stopped = options(tiny_corpus, task, *common, *lowered, "--save-dir", tmp_path / "stopped", "--max-update")
    run_train(*stopped, "2")
    run_train(*stopped, "4")
    assert difference(state, state_of(tmp_path / "stopped")) == ""


@pytest.mark.parametrize("used", [True, False])
def test_validation_and_retrieval_compute_in_it_too(
    used: bool, tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = list[bool]()
    in_precision = SampledTask.in_precision

    def noted(self: SampledTask, model: nn.Module) -> object:
        seen.append(isinstance(in_precision(self, model), Autocast))
        return in_precision(self, model)

    monkeypatch.setattr(SampledTask, "in_precision", noted)
    more = ("--num-workers", "0", "--max-update", "1", "--valid-retrieval", "--batch-size-valid", "64")
    run_train(*caption_options(tiny_corpus, tmp_path, *more, *(("--autocast", "bfloat16") if used else ())))
    assert seen == [used] * 4, "a step, a batch of each language, and retrieval"
