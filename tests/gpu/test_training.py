"""Trainings in every precision: losses fall, what is logged is finite, a stop changes nothing, a signal saves."""

from __future__ import annotations

import math
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mclip_fairseq.storage.errors import UserError
from tests.integration.test_resume import options
from tests.processes import start, wait_for
from tests.runs import ROOT, losses_of, state_of

Train = Callable[..., str]
FP16 = ("--fp16", "--fp16-init-scale", "128")
GPU = pytest.mark.gpu
# The CPU has no fp16 (tests/integration/test_resume.py runs it there behind the check at the start).
PRECISIONS = [
    pytest.param("cpu", (), id="cpu-fp32", marks=pytest.mark.slow),
    pytest.param("cuda", (), id="cuda-fp32", marks=GPU),
    pytest.param("cuda", ("--tf32",), id="cuda-tf32", marks=GPU),
    pytest.param("cuda", FP16, id="cuda-fp16-flat", marks=GPU),
    pytest.param("cuda", (*FP16, "--fp16-no-flatten-grads"), id="cuda-fp16", marks=GPU),
    pytest.param("cuda", ("--autocast", "bfloat16"), id="cuda-bf16", marks=GPU),
]


def train(run_train: Train, corpus: Path, task: str, device: str, folder: Path, updates: int, *more: object) -> str:
    """A run with dropout, accumulation and a schedule, which continues what is in the folder."""
    common = ("--num-workers", "0", "--log-interval", "1", "--save-dir", folder, "--max-update", updates)
    return run_train(*options(corpus, task, *common, *more), device=device)


def largest_distance(one: dict[str, Any], two: dict[str, Any]) -> float:
    """Between the parameters of two checkpoints, relative to the largest entry of each tensor."""
    pairs = [(tensor, two["model"][name]) for name, tensor in one["model"].items() if tensor.is_floating_point()]
    return max(float((a - b).abs().max() / b.abs().max().clamp(min=1e-3)) for a, b in pairs)


@pytest.mark.parametrize(("device", "precision"), PRECISIONS)
@pytest.mark.parametrize("task", ["mte", "trikd"])
def test_losses_fall_and_a_stop_changes_nothing(
    task: str, device: str, precision: tuple[str, ...], tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """On a GPU up to rounding: its kernels add in no fixed order. Rounded fp32 copies would be 5e-4 off."""
    log = train(run_train, tiny_corpus, task, device, tmp_path / "straight", 10, *precision)
    lines = losses_of(log)
    assert len(lines) == 10
    values = [float(value) for line in lines.values() for value in line.values() if value is not None]
    assert all(map(math.isfinite, values)), lines
    losses = [float(line["loss"]) for line in lines.values()]
    assert sum(losses[-3:]) < sum(losses[:3])
    train(run_train, tiny_corpus, task, device, tmp_path / "stopped", 5, *precision)
    train(run_train, tiny_corpus, task, device, tmp_path / "stopped", 10, *precision)
    straight, stopped = state_of(tmp_path / "straight"), state_of(tmp_path / "stopped")
    assert largest_distance(straight, stopped) <= (0 if device == "cpu" else 1e-4)
    kept = [state["extra_state"].get("mclip_unsaved", {}).get("scaler") for state in (straight, stopped)]
    assert kept[0] == kept[1]
    assert bool(kept[0]) == ("--fp16" in precision)


@GPU
def test_a_run_moves_from_the_cpu_to_the_gpu_and_back(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    train(run_train, tiny_corpus, "trikd", "cpu", tmp_path / "cpu", 6, "--dropout", "0")
    for updates, device in ((2, "cpu"), (4, "cuda"), (6, "cpu")):
        train(run_train, tiny_corpus, "trikd", device, tmp_path / "moved", updates, "--dropout", "0")
    assert largest_distance(state_of(tmp_path / "cpu"), state_of(tmp_path / "moved")) < 1e-3


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (("--amp",), "--amp: fairseq divides gradients by the loss scale twice"),
        (("--memory-efficient-fp16",), "--memory-efficient-fp16: --optimizer fused_adamw needs weights in float32"),
        (("--fp16", "--autocast", "bfloat16"), "--fp16 and --autocast bfloat16 are both given"),
    ],
)
def test_what_cannot_work_on_a_gpu_is_refused(
    more: tuple[str, ...],
    sentence: str,
    tiny_corpus: Path,
    run_train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is sent there, so a pretended GPU will do."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: True)
    with pytest.raises(UserError, match=sentence):
        train(run_train, tiny_corpus, "trikd", "cuda", tmp_path, 1, *more)


@GPU
@pytest.mark.parametrize("precision", [(), ("--autocast", "bfloat16")])
def test_cached_states_train_as_tokens_do(
    precision: tuple[str, ...], tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    frozen = ("--freeze-text", "all", "--dropout", "0", *precision)
    train(run_train, tiny_corpus, "trikd", "cuda", tmp_path / "tokens", 4, *frozen)
    cache = ("--text-state-cache", tmp_path / "cache")
    train(run_train, tiny_corpus, "trikd", "cuda", tmp_path / "states", 4, *frozen, *cache)
    train(run_train, tiny_corpus, "trikd", "cuda", tmp_path / "kept", 4, *frozen, *cache, "--keep-text-states")
    tokens, states, kept = (state_of(tmp_path / name) for name in ("tokens", "states", "kept"))
    assert largest_distance(tokens, states) < (2e-2 if precision else 1e-3)
    assert largest_distance(states, kept) < 1e-4


@GPU
def test_a_signal_saves_and_ends(tiny_corpus: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    more = ("--num-workers", "0", "--log-interval", "1", "--save-dir", tmp_path / "run", "--max-update", "100000")
    command = options(tiny_corpus, "trikd", *more, "--user-dir", ROOT / "mclip_fairseq")
    process = start((sys.executable, "-m", "fairseq_cli.train", *command, "--distributed-world-size", "1"), log)
    try:
        wait_for("| train_inner | {", log, process)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0, log.read_text()
    finally:
        process.kill()
    assert "SIGTERM: saving after" in log.read_text()
    assert state_of(tmp_path / "run")["optimizer_history"][-1]["num_updates"] > 0


@GPU
def test_one_rank_with_nccl(
    tiny_corpus: Path, run_train: Train, fairseq_cli: Callable[..., Any], tmp_path: Path
) -> None:
    """Under torchrun with DDP, the same parameters as without."""
    train(run_train, tiny_corpus, "trikd", "cuda", tmp_path / "one", 4, "--dropout", "0")
    more = ("--num-workers", "0", "--log-interval", "1", "--save-dir", tmp_path / "nccl", "--max-update", "4")
    command = options(tiny_corpus, "trikd", *more, "--dropout", "0", "--user-dir", ROOT / "mclip_fairseq")
    fairseq_cli("torchrun", "--nproc-per-node", "1", "-m", "fairseq_cli.train", *command)
    assert largest_distance(state_of(tmp_path / "one"), state_of(tmp_path / "nccl")) < 1e-4
    shutil.rmtree(tmp_path / "nccl")
