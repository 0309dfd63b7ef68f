"""SIGTERM and SIGUSR1: the step is finished, everything saved, and the run ends with status 0 and resumes exactly."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fairseq.trainer import Trainer

from mclip_fairseq.resilience import signals
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.tasks import validation_retrieval
from mclip_fairseq.tasks.sampled import SampledTask
from tests.runs import CLOCK, caption_options, difference, state_of

Train = Callable[..., str]


@pytest.fixture(scope="module")
def train_with_events(tiny_corpus: Path, run_train: Train) -> Train:
    """Trains in a folder: 4 updates an epoch, logging every 2, validation every 3 and at epoch end, plateau."""
    schedule = (
        *("--batch-size", "52", "--log-interval", "2", "--validate-interval-updates", "3", "--max-update", "10"),
        *("--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience", "0", "--lr-shrink", "0.5", "--patience", "9"),
        *("--num-workers", "0"),
    )
    return lambda folder, *more: run_train(*caption_options(tiny_corpus, folder, *schedule, *more))


@pytest.fixture(scope="module")
def uninterrupted(train_with_events: Train, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder and the log of a run that nothing stops."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    return folder, train_with_events(folder)


def logged(log: str) -> list[dict[str, Any]]:
    """Everything that was logged, without what the clock decides."""
    lines = [json.loads(match[1]) for match in re.finditer(r"\| (?:train|train_inner|valid) \| (\{.*\})", log)]
    return [{name: value for name, value in line.items() if not CLOCK & {name, *name.split("_", 1)}} for line in lines]


def signal_in_step(patch: pytest.MonkeyPatch, number: int, updates: int) -> None:
    """Send a signal to this process in the middle of an update."""
    step = SampledTask.optimizer_step

    def signalled(self: Any, optimizer: Any, model: Any, update_num: int) -> None:
        if update_num == updates - 1:
            os.kill(os.getpid(), number)
        step(self, optimizer, model, update_num)

    patch.setattr(SampledTask, "optimizer_step", signalled)


def signal_in_validation(patch: pytest.MonkeyPatch, number: int, updates: int) -> None:
    """Send a signal to this process at the start of each validation; the first one is after three updates."""
    patch.setattr(Trainer, "begin_valid_epoch", lambda self, epoch: os.kill(os.getpid(), number))


@dataclass(frozen=True)
class Interruption:
    """A signal, what sends it, after how many updates the run ends, and how often it saves."""

    number: signal.Signals
    send: Callable[[pytest.MonkeyPatch, int, int], None]
    updates: int
    saved: tuple[str, ...] = ("and ending",)


IN_VALIDATION = ("in the middle of a validation", "and ending")
INTERRUPTIONS = {
    "where averages are logged": Interruption(signal.SIGTERM, signal_in_step, 2),
    "last step of an epoch": Interruption(signal.SIGTERM, signal_in_step, 4),
    "validation": Interruption(signal.SIGUSR1, signal_in_validation, 3, IN_VALIDATION),
}


@pytest.mark.parametrize("moment", INTERRUPTIONS)
def test_a_signalled_run_saves_ends_and_resumes_exactly(
    moment: str,
    uninterrupted: tuple[Path, str],
    train_with_events: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = INTERRUPTIONS[moment]
    handler = signal.getsignal(case.number)
    with monkeypatch.context() as patch:
        case.send(patch, case.number, case.updates)
        log = train_with_events(tmp_path, "--no-last-checkpoints", "--log-file", tmp_path / "train.log")
    saved = load_checkpoint(tmp_path / "checkpoint_last.pt")
    assert saved["optimizer_history"][-1]["num_updates"] == case.updates
    said = re.findall(rf"{case.number.name}: saving after {case.updates} updates,? (.*)", log)
    assert tuple(said) == case.saved
    assert f"after {case.updates} updates and ending" in (tmp_path / "train.log").read_text(encoding="utf-8")
    assert signal.getsignal(case.number) == handler, "the program's own handler is back"
    log += train_with_events(tmp_path)
    folder, whole_log = uninterrupted
    assert logged(log) == logged(whole_log)
    assert difference(state_of(folder), state_of(tmp_path)) == ""
    best = [load_checkpoint(path / "checkpoint_best.pt")["model"] for path in (folder, tmp_path)]
    assert difference(*best) == ""


def test_a_plateau_schedule_sees_the_last_loss_again(
    uninterrupted: tuple[Path, str], train_with_events: Train, tmp_path: Path
) -> None:
    """fairseq passes it at the end of an epoch, but only after the checkpoint is written."""
    for updates in (4, 10):
        train_with_events(tmp_path, "--max-update", updates)
    assert difference(state_of(uninterrupted[0]), state_of(tmp_path)) == ""


def test_a_signal_within_retrieval_saves_before_its_end(
    tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many languages, it takes longer than a scheduler waits."""
    encode, rank, seen = (
        validation_retrieval.utils.apply_to_sample,
        validation_retrieval.evaluate_languages,
        list[str](),
    )

    def signalled(*arguments: Any) -> Any:
        if not seen:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append("batch")
        return encode(*arguments)

    def ranked(*arguments: Any) -> Any:
        seen.append("saved" if (tmp_path / "checkpoint_last.pt").exists() else "not saved")
        return rank(*arguments)

    monkeypatch.setattr(validation_retrieval, "BATCH", 4)
    monkeypatch.setattr(validation_retrieval, "utils", SimpleNamespace(apply_to_sample=signalled))
    monkeypatch.setattr(validation_retrieval, "evaluate_languages", ranked)
    more = ("--num-workers", "0", "--valid-retrieval", "--validate-interval-updates", "2", "--max-update", "4")
    log = run_train(*caption_options(tiny_corpus, tmp_path, *more))
    assert seen[-1] == "saved"
    assert "SIGTERM: saving after 2 updates, in the middle of a validation" in log


@pytest.mark.parametrize("directories", [1, 2])
def test_loader_processes_end_with_their_epoch(
    directories: int, tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are redrawn in every epoch, by an iterator with its own processes."""
    step, seen = SampledTask.optimizer_step, []

    def counted(self: Any, optimizer: Any, model: Any, update_num: int) -> None:
        seen.append(len(multiprocessing.active_children()))
        step(self, optimizer, model, update_num)

    monkeypatch.setattr(SampledTask, "optimizer_step", counted)
    more = ("--batch-size", "104", "--max-update", "8", "--num-workers", "1", "--no-save")
    command = caption_options(tiny_corpus, tmp_path / "run", *more)
    if directories == 2:
        copy = shutil.copytree(tiny_corpus / "captions", tmp_path / "captions")
        command[0] = f"{tiny_corpus / 'captions'}:{copy}"
    before = len(multiprocessing.active_children())
    gc.disable()  # it would end some of them at some point
    try:
        run_train(*command)
    finally:
        gc.enable()
    assert max(seen) <= before + 2, "one of training, one of validation"


def test_the_negative_control_a_signal_that_is_not_noted(
    tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run continues to its end, and the test above would fail."""
    signal_in_step(monkeypatch, signal.SIGTERM, 2)
    monkeypatch.setattr(signals, "_note", lambda number, frame: None)
    log = run_train(
        *caption_options(tiny_corpus, tmp_path, "--num-workers", "0", "--max-update", "3", "--disable-validation")
    )
    assert load_checkpoint(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 3
    assert "and ending" not in log


def test_nobody_listens_outside_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the plugin leaves a program's handlers alone, and the end of a run restores them."""
    before = [signal.getsignal(number) for number in signals.SIGNALS]
    signals.listen()
    signals.listen()
    assert signals.asked_to_stop() == ""
    os.kill(os.getpid(), signal.SIGTERM)
    assert signals.asked_to_stop() == "SIGTERM"
    signals.listen_no_more()
    assert signals.asked_to_stop() == "SIGTERM", "another run is still listening"
    signals.listen_no_more()
    signals.listen_no_more()
    assert [signal.getsignal(number) for number in signals.SIGNALS] == before
    assert signals.asked_to_stop() == ""
