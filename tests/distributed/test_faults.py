"""Faults of one rank: they end the job on all ranks soon, before any parameter changes, and the log says which."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from mclip_fairseq.criterions import nonfinite as finite
from mclip_fairseq.criterions.nonfinite import NonFiniteError, find_nonfinite
from mclip_fairseq.storage.files import file_sha256
from mclip_fairseq.tasks import sampled as task_module
from mclip_fairseq.tasks.sampled import SampledTask
from tests.runs import GLOO, HANG, ROOT, difference, free_ports, losses_of, state_of, train_on_ranks

Train = Callable[..., str]
BAD = 13  # the row of the image whose features are broken: captions 13, 53 and 93 in every language


def options(corpus: Path, features: Path, folder: Path, *more: object) -> list[object]:
    return [
        *(corpus / "captions", "--task", "trikd", "--langs", "en,de", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--image-features", features, "--text-text-weight", "0", "--freeze-text", "none", "--dropout", "0"),
        *("--optimizer", "fused_adamw", "--lr", "0.003", "--weight-decay", "0.1", "--batch-size", "8", "--max-epoch"),
        *("1", "--num-workers", "0", "--log-interval", "1", "--log-format", "json", "--disable-validation"),
        *("--no-epoch-checkpoints", "--save-dir", folder, *more),
    ]


@pytest.fixture(autouse=True)
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Broken features get past the check at the start, as if they had changed after it."""
    monkeypatch.setattr("mclip_fairseq.storage.features.check_finite", lambda *arguments: None)


@pytest.fixture(scope="module")
def broken(tiny_corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Image features of which one row is not finite, as another program may have written them."""
    folder = tmp_path_factory.mktemp("broken") / "image"
    shutil.copytree(tiny_corpus / "features" / "image", folder)
    shard = folder / "features-00000.npy"
    array = np.load(shard)
    array[BAD, 3] = np.nan
    np.save(shard, array)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["shards"][0]["sha256"] = file_sha256(shard)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_the_batch_and_its_language_are_named(
    tiny_corpus: Path, broken: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ("--langs", "en", "--batch-size", "104")
    error: pytest.ExceptionInfo[Exception]
    with pytest.raises(NonFiniteError) as error:
        run_train(*options(tiny_corpus, broken, tmp_path / "one", *first))
    sentence = str(error.value)
    assert sentence.startswith("update 1: not finite: features of en:0, samples ")
    assert sorted(map(int, sentence.split("samples ")[1].split(" (")[0].split(", "))) == [13, 53, 93]
    assert "(the input image_features) on rank 0; repair these samples" in sentence
    assert "--skip-nonfinite 10" in sentence
    assert not (tmp_path / "one" / "checkpoint_last.pt").exists()
    # The negative control: fairseq alone notices the gradients, and its search for the place fails in itself.
    monkeypatch.setattr(task_module, "find_nonfinite", lambda *arguments: ([], True))
    with pytest.raises((FloatingPointError, RuntimeError, StopIteration)) as error:
        run_train(*options(tiny_corpus, broken, tmp_path / "two", *first))
    assert "samples" not in str(error.value)


def test_a_budget_is_kept_counted_and_resumed(
    tiny_corpus: Path, broken: Path, run_train: Train, tmp_path: Path
) -> None:
    """Six captions have the broken image; batches with them change nothing, and the count survives a stop."""
    log = run_train(*options(tiny_corpus, broken, tmp_path / "all", "--skip-nonfinite", "6"))
    skipped = log.count("batch left out")
    assert 3 <= skipped <= 6
    assert f"{skipped} of --skip-nonfinite 6" in log
    assert int(float(list(losses_of(log).values())[-1]["skipped_nonfinite"])) == skipped
    state = state_of(tmp_path / "all")
    assert all(torch.isfinite(value).all() for value in state["model"].values() if value.is_floating_point())
    assert state["extra_state"]["TriKDTask"]["skipped_nonfinite"] == skipped
    stop = options(tiny_corpus, broken, tmp_path / "stopped", "--skip-nonfinite", "6", "--save-interval-updates", "1")
    run_train(*stop, "--max-update", "9")
    run_train(*stop)
    assert difference(state, state_of(tmp_path / "stopped")) == ""
    with pytest.raises(NonFiniteError, match="not finite"):
        run_train(*options(tiny_corpus, broken, tmp_path / "less", "--skip-nonfinite", skipped - 1))


def test_an_update_that_was_left_out_changes_nothing(
    tiny_corpus: Path, broken: Path, run_train: Train, tmp_path: Path
) -> None:
    """Not even by momentum or weight decay; but a sound batch of the same update counts."""
    one = ("--langs", "en", "--batch-size", "104", "--skip-nonfinite", "9")
    run_train(*options(tiny_corpus, tiny_corpus / "features" / "image", tmp_path / "run", *one))
    before = state_of(tmp_path / "run")
    more = (*one, "--max-epoch", "2", "--reset-dataloader")
    run_train(*options(tiny_corpus, broken, tmp_path / "run", *more, "--max-update", "2"))
    after = state_of(tmp_path / "run")
    assert after["optimizer_history"][-1]["num_updates"] == 2
    assert difference(before["model"], after["model"]) == ""
    moments = [state["last_optimizer_state"]["state"] for state in (before, after)]
    assert difference(*moments) == ""
    half = options(tiny_corpus, broken, tmp_path / "half", "--batch-size", "52", "--update-freq", "4", *one[4:])
    assert "batch left out" in run_train(*half)
    moments = [state_of(tmp_path / "half")["last_optimizer_state"]["state"]]
    assert all(entry["exp_avg"].abs().sum() > 0 for entry in moments[0].values()), "the sound batches counted"


def test_only_the_guilty_rank_is_blamed() -> None:
    sample = {"id": torch.tensor([4, 7, 9]), "part": "en-de", "net_input": {"src_tokens": torch.zeros(3, 2)}}
    sound, broken_loss = torch.tensor(1.0), torch.tensor(float("inf"))
    assert find_nonfinite(sound, 0, sample, False) == ([], True)
    assert find_nonfinite(broken_loss, 0, sample, True) == ([], False), "a dummy batch does not count"
    assert find_nonfinite(broken_loss, 0, sample, False)[0] == ["loss of en-de, samples 4, 7, 9 on rank 0"]
    assert find_nonfinite(sound, torch.tensor(2), sample, False)[0][0].startswith("features of en-de")
    many = {**sample, "id": torch.arange(20)}
    assert "0, 1, 2, 3, 4, 5, 6, 7 and 12 more" in find_nonfinite(broken_loss, 0, many, False)[0][0]
    matrix = torch.tensor([[1.0, float("nan")], [1.0, 2.0], [float("-inf"), 0.0]])
    assert int(finite.count_nonfinite_rows(matrix, None, torch.ones(2, 2))) == 2
    task = SimpleNamespace(kept_in_update={"update": 3, "kept": 0})
    SampledTask.optimizer_step(task, None, None, 3)  # type: ignore[arg-type]  # no optimizer to step


@pytest.mark.distributed
def test_one_rank_stops_both_before_the_step(tiny_corpus: Path, broken: Path, tmp_path: Path) -> None:
    runs = [
        options(tiny_corpus, broken, tmp_path / "stop", "--langs", "en", "--batch-size", "52", "--curriculum", "9"),
        options(tiny_corpus, broken, tmp_path / "skip", "--skip-nonfinite", "20", "--update-freq", "2"),
    ]
    stopped, skipped = train_on_ranks(2, runs, tmp_path, unchecked=True)
    last = [output.splitlines()[-1] for output in stopped]
    assert last[0] == last[1], "both ranks say the same"
    assert last[0].startswith("exit status NonFiniteError: update 1: not finite: features of en:0, samples ")
    assert "(the input image_features) on rank " in last[0]
    assert not (tmp_path / "stop" / "checkpoint_last.pt").exists()
    assert all(output.endswith("exit status 0\n") for output in skipped), skipped
    assert "batch left out" in skipped[0]
    weights = state_of(tmp_path / "skip")["model"].values()
    assert all(torch.isfinite(value).all() for value in weights if value.is_floating_point())


FAILING = """
import os, signal, sys, time
from mclip_fairseq.tasks.sampled import SampledTask
step = SampledTask.train_step
def failing(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
    if os.environ["RANK"] == "1" and update_num == 2:
        if os.environ["FAULT"] == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if os.environ["FAULT"] == "hang":
            time.sleep(600)
        raise OSError("the disk of rank 1 is gone")
    return step(self, sample, model, criterion, optimizer, update_num, ignore_grad)
SampledTask.train_step = failing
from fairseq_cli.train import cli_main
cli_main()
"""


def fail(corpus: Path, folder: Path, fault: str, patience: float = HANG) -> tuple[int, str]:
    """Status and log of a job whose rank 1 fails in its third step."""
    script, log = folder / "failing.py", folder / "log"
    script.write_text(FAILING)
    command: list[Any] = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script),
        *options(corpus, corpus / "features" / "image", folder / "run", "--user-dir", ROOT / "mclip_fairseq", "--cpu"),
        *(*GLOO, "--distributed-world-size", "2"),
    ]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "FAULT": fault, "MASTER_PORT": str(free_ports(1)[0])}
    with log.open("wb") as stream:
        process = subprocess.Popen(
            list(map(str, command)), stdout=stream, stderr=stream, env=environment, start_new_session=True
        )
        try:
            while "| train_inner | {" not in log.read_text(errors="replace") and process.poll() is None:
                time.sleep(0.05)
            status = process.wait(timeout=patience)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    return status, log.read_text(errors="replace")


@pytest.mark.slow
@pytest.mark.distributed
def test_a_failing_rank_ends_the_job(tiny_corpus: Path, tmp_path: Path) -> None:
    status, log = fail(tiny_corpus, tmp_path, "raise")
    assert status != 0
    assert "OSError: the disk of rank 1 is gone" in log
    first = log.index("Traceback (most recent call last)")
    assert "the disk of rank 1 is gone" in log[first:].split("Traceback (most recent call last)")[1]


@pytest.mark.slow
@pytest.mark.distributed
def test_a_killed_rank_ends_the_job(tiny_corpus: Path, tmp_path: Path) -> None:
    status, log = fail(tiny_corpus, tmp_path, "kill")
    assert status != 0
    assert "SIGKILL" in log or "Signal 9" in log


@pytest.mark.slow
@pytest.mark.distributed
def test_the_negative_control_a_rank_that_hangs(tiny_corpus: Path, tmp_path: Path) -> None:
    """What the tests above would see if nobody noticed."""
    with pytest.raises(subprocess.TimeoutExpired):
        fail(tiny_corpus, tmp_path, "hang", patience=60)
