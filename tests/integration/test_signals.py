"""SIGTERM and SIGUSR1: the step is finished, everything saved, and the run ends well and goes on exactly."""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fairseq.trainer import Trainer

from mclip_fairseq.resilience import install, signals
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.tasks import validation_retrieval as in_training
from mclip_fairseq.tasks.sampled import SampledTask
from tests.runs import CLOCK, GLOO, ROOT, difference, state_of

Train = Callable[..., str]


def options(corpus: Path, folder: Path, *more: object) -> list[object]:
    return [
        *(corpus / "captions", "--task", "trikd", "--langs", "en,de", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--image-features", corpus / "features" / "image", "--text-text-weight", "0", "--freeze-text", "none"),
        *("--optimizer", "fused_adamw", "--lr", "0.003", "--batch-size", "8", "--no-epoch-checkpoints"),
        *("--save-dir", folder, "--log-interval", "1", "--log-format", "json", *more),
    ]


@pytest.fixture(scope="module")
def eventful() -> tuple[object, ...]:
    """Epochs of four updates, averages of two, a validation every three and after epochs, a schedule that looks on."""
    return (
        *("--batch-size", "52", "--log-interval", "2", "--validate-interval-updates", "3", "--max-update", "10"),
        *("--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience", "0", "--lr-shrink", "0.5", "--patience", "9"),
        *("--num-workers", "0"),
    )


@pytest.fixture(scope="module")
def straight(
    tiny_corpus: Path, run_train: Train, eventful: tuple[object, ...], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """A run that nobody stops, and its log."""
    folder = tmp_path_factory.mktemp("straight")
    return folder, run_train(*options(tiny_corpus, folder, *eventful))


def logged(log: str) -> list[dict[str, Any]]:
    """Everything that was logged, less what the clock decides."""
    lines = [json.loads(match[1]) for match in re.finditer(r"\| (?:train|train_inner|valid) \| (\{.*\})", log)]
    return [{name: value for name, value in line.items() if not CLOCK & {name, *name.split("_", 1)}} for line in lines]


@pytest.mark.parametrize(
    ("number", "moment", "updates"),
    [
        (signal.SIGTERM, "where averages are logged", 2),
        (signal.SIGTERM, "last step of an epoch", 4),
        (signal.SIGUSR1, "validation", 3),
    ],
)
def test_a_signalled_run_saves_ends_well_and_goes_on_exactly(
    number: int,
    moment: str,
    updates: int,
    straight: tuple[Path, str],
    eventful: tuple[object, ...],
    tiny_corpus: Path,
    run_train: Train,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        if moment == "validation":
            patch.setattr(Trainer, "begin_valid_epoch", lambda self, epoch: os.kill(os.getpid(), number))
        else:
            step = SampledTask.optimizer_step

            def signalled(self: Any, optimizer: Any, model: Any, update_num: int) -> None:
                if update_num == updates - 1:
                    os.kill(os.getpid(), number)  # in the middle of the step
                step(self, optimizer, model, update_num)

            patch.setattr(SampledTask, "optimizer_step", signalled)
        log = run_train(*options(tiny_corpus, tmp_path, *eventful, "--no-last-checkpoints"))
    saved = load_checkpoint(tmp_path / "checkpoint_last.pt")
    assert saved["optimizer_history"][-1]["num_updates"] == updates
    name = signal.Signals(number).name
    assert f"{name}: saving after {updates} updates and ending" in log
    assert (f"{name}: saving after {updates} updates, in the middle of a validation" in log) == (moment == "validation")
    assert signal.getsignal(number) == before, "the signals belong to the program again"
    log += run_train(*options(tiny_corpus, tmp_path, *eventful))
    folder, log_of_straight = straight
    assert logged(log) == logged(log_of_straight)
    assert difference(state_of(folder), state_of(tmp_path)) == ""
    best = [load_checkpoint(path / "checkpoint_best.pt")["model"] for path in (folder, tmp_path)]
    assert difference(*best) == ""


def test_a_schedule_that_looks_at_losses_hears_the_last_one_again(
    straight: tuple[Path, str], eventful: tuple[object, ...], tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """fairseq tells it at the end of an epoch, but after the checkpoint is written."""
    for updates in (4, 10):
        run_train(*options(tiny_corpus, tmp_path, *eventful, "--max-update", updates))
    assert difference(state_of(straight[0]), state_of(tmp_path)) == ""


def test_a_signal_within_retrieval_saves_before_its_end(
    tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over many languages it takes longer than a scheduler waits."""
    encode, rank, seen = in_training.utils.apply_to_sample, in_training.evaluate_languages, list[str]()

    def signalled(*arguments: Any) -> Any:
        if not seen:
            os.kill(os.getpid(), signal.SIGTERM)
        seen.append("batch")
        return encode(*arguments)

    def ranked(*arguments: Any) -> Any:
        seen.append("saved" if (tmp_path / "checkpoint_last.pt").exists() else "not saved")
        return rank(*arguments)

    monkeypatch.setattr(in_training, "BATCH", 4)
    monkeypatch.setattr(in_training, "utils", SimpleNamespace(apply_to_sample=signalled))
    monkeypatch.setattr(in_training, "evaluate_languages", ranked)
    more = ("--num-workers", "0", "--valid-retrieval", "--validate-interval-updates", "2", "--max-update", "4")
    log = run_train(*options(tiny_corpus, tmp_path, *more))
    assert seen[-1] == "saved"
    assert "SIGTERM: saving after 2 updates, in the middle of a validation" in log


@pytest.mark.parametrize("directories", [1, 2])
def test_loader_processes_end_with_their_epoch(
    directories: int, tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Samples are redrawn in every epoch, by an iterator with processes of its own."""
    step, seen = SampledTask.optimizer_step, []

    def counted(self: Any, optimizer: Any, model: Any, update_num: int) -> None:
        seen.append(len(children(os.getpid())))
        step(self, optimizer, model, update_num)

    monkeypatch.setattr(SampledTask, "optimizer_step", counted)
    more = ("--batch-size", "104", "--max-update", "8", "--num-workers", "1", "--no-save")
    command = options(tiny_corpus, tmp_path / "run", *more)
    if directories == 2:
        copy = shutil.copytree(tiny_corpus / "captions", tmp_path / "captions")
        command[0] = f"{tiny_corpus / 'captions'}:{copy}"
    before = len(children(os.getpid()))
    gc.disable()  # which would end some of them some time
    try:
        run_train(*command)
    finally:
        gc.enable()
    assert max(seen) <= before + 2, "one of training, one of validation"


def test_the_negative_control_a_signal_that_is_not_noted(
    tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run goes on to its end, and the test above would say so."""
    step = SampledTask.optimizer_step

    def signalled(self: Any, optimizer: Any, model: Any, update_num: int) -> None:
        if update_num == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        step(self, optimizer, model, update_num)

    monkeypatch.setattr(signals, "_note", lambda number, frame: None)
    monkeypatch.setattr(SampledTask, "optimizer_step", signalled)
    log = run_train(*options(tiny_corpus, tmp_path, "--num-workers", "0", "--max-update", "3", "--disable-validation"))
    assert load_checkpoint(tmp_path / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"] == 3
    assert "and ending" not in log


def test_nobody_listens_outside_of_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing the plugin leaves a program's signals alone, and so does the end of a run."""
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
    install.install()
    install.install()


def children(pid: int) -> list[int]:
    """Processes that a process has started, with theirs; fairseq starts its data workers in a thread."""
    found = [name for thread in Path(f"/proc/{pid}/task").glob("*/children") for name in thread.read_text().split()]
    return [one for child in map(int, found) for one in [child, *children(child)]]


def obey_interrupts() -> None:
    """What is started by a shell's `&` ignores them, and so does all that it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def start(command: Sequence[object], log: Path, **environment: str) -> subprocess.Popen[bytes]:
    path = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    with log.open("wb") as stream:
        return subprocess.Popen(
            [*map(str, command)],
            stdout=stream,
            stderr=stream,
            env=path,
            start_new_session=True,
            preexec_fn=obey_interrupts,
        )


def wait_for(what: str, log: Path, process: subprocess.Popen[bytes], patience: float = 120) -> str:
    """The log, once it holds some words."""
    end = time.monotonic() + patience
    while time.monotonic() < end and process.poll() is None:
        if what in log.read_text(errors="replace"):
            return log.read_text(errors="replace")
        time.sleep(0.05)
    raise AssertionError(f"{what!r} is not in the log:\n{log.read_text(errors='replace')[-4000:]}")


def still_there(processes: Sequence[int], patience: float = 10) -> list[int]:
    """Processes that are still there after a while; none, if all is well."""
    end = time.monotonic() + patience
    while (left := [pid for pid in processes if "State:\tZ" not in status(pid)]) and time.monotonic() < end:
        time.sleep(0.05)
    return left


def status(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return "State:\tZ"


ON_TWO_GPUS = """
import torch
from fairseq_cli.train import cli_main

if __name__ == "__main__":
    torch.cuda.device_count = lambda: 2
    cli_main()
"""


@pytest.mark.distributed
def test_two_ranks_that_fairseq_started_stop_together(tiny_corpus: Path, tmp_path: Path) -> None:
    """Only the process that started them is signalled, as by `kill` or `timeout`; it passes the signal on."""
    log, program = tmp_path / "log", tmp_path / "train.py"
    program.write_text(ON_TWO_GPUS)
    command = [
        *(sys.executable, program, *options(tiny_corpus, tmp_path / "run", *GLOO)),
        *("--user-dir", ROOT / "mclip_fairseq", "--distributed-world-size", "2", "--cpu", "--num-workers", "0"),
        *("--max-update", "100000", "--disable-validation"),
    ]
    process = start(command, log)
    try:
        wait_for("| train_inner | {", log, process)
        everyone = children(process.pid)
        process.terminate()
        assert process.wait(timeout=60) == 0, log.read_text()[-4000:]
        assert still_there(everyone) == []
    finally:
        process.kill()
    updates = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    assert f"SIGTERM: saving after {updates} updates and ending" in log.read_text()


@pytest.mark.distributed
def test_two_ranks_under_torchrun_stop_together(tiny_corpus: Path, tmp_path: Path) -> None:
    """One rank is signalled, and so is every data worker, as a scheduler does; torchrun ends with status 0."""
    log = tmp_path / "log"
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
        *("-m", "fairseq_cli.train", *options(tiny_corpus, tmp_path / "run", "--user-dir", ROOT / "mclip_fairseq")),
        *("--cpu", "--distributed-backend", "gloo", "--ddp-backend", "legacy_ddp", "--distributed-world-size", "2"),
        *("--num-workers", "2", "--max-update", "100000", "--disable-validation"),
    ]
    process = start(command, log)
    try:
        wait_for("| train_inner | {", log, process)
        ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        everyone = children(process.pid)
        assert len(ranks) == 2
        assert len(everyone) >= 6
        for worker in set(everyone) - set(ranks):
            os.kill(worker, signal.SIGTERM)
        os.kill(ranks[1], signal.SIGTERM)
        assert process.wait(timeout=60) == 0, log.read_text()[-4000:]
        assert still_there(everyone) == []
    finally:
        process.kill()
    text = log.read_text()
    assert "SIGTERM: saving after" in text
    assert "Traceback" not in text
    updates = load_checkpoint(tmp_path / "run" / "checkpoint_last.pt")["optimizer_history"][-1]["num_updates"]
    assert f"saving after {updates} updates" in text


LEAVING_ONE_BEHIND = """
import os, signal, time, torch.utils.data
from fairseq_cli.train import cli_main
from mclip_fairseq.data import sampling

def stay():
    if torch.utils.data.get_worker_info() and not started:
        started.append(os.fork())
        if not started[0]:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            time.sleep(60)

started = []
sampling.shield_worker = stay
cli_main()
"""


@pytest.mark.parametrize(("program", "workers"), [(("-m", "fairseq_cli.train"), 8), (("-c", LEAVING_ONE_BEHIND), 1)])
def test_eight_workers_end_with_an_interrupt(
    program: tuple[str, str], workers: int, tiny_corpus: Path, tmp_path: Path
) -> None:
    """Control-C reaches every process of the terminal: all are gone soon, and only the trainer says why.

    The negative control is a worker that starts a process which does not listen: it is noticed.
    """
    log = tmp_path / "log"
    command = [
        *(sys.executable, *program, *options(tiny_corpus, tmp_path / "run", "--num-workers", workers)),
        *("--user-dir", ROOT / "mclip_fairseq", "--cpu", "--disable-validation", "--no-save", "--max-update", "100000"),
    ]
    process = start(command, log)
    everyone: list[int] = []
    try:
        wait_for("| train_inner | {", log, process)
        everyone = children(process.pid)
        assert len(everyone) >= workers
        os.killpg(process.pid, signal.SIGINT)
        begin = time.monotonic()
        assert process.wait(timeout=60) in (-signal.SIGINT, 128 + signal.SIGINT)
        assert time.monotonic() - begin < 30
        assert (still_there(everyone, patience=10 if workers == 8 else 1) == []) == (workers == 8)
    finally:
        process.kill()
        for left in still_there(everyone, patience=0):
            os.kill(left, signal.SIGKILL)
    text = log.read_text()
    assert text.count("Traceback") == 1, text[-4000:]
    assert text.rstrip().endswith("KeyboardInterrupt")
    assert "leaked" not in text


@pytest.mark.parametrize("shielded", [True, False])
def test_a_child_of_a_run_obeys_it_from_its_fork_on(shielded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before it has loaded anything; the noting of signals that it inherits would swallow SIGTERM, as the other case is
    there to show."""
    if not shielded:
        monkeypatch.setattr(signals, "listening", lambda: False)
    # What a rank that was spawned by fairseq's launcher says, and its forks at first.
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: SimpleNamespace(pid=1))
    signals.listen()
    try:
        child = os.fork()
        if not child:
            time.sleep(60)
            os._exit(1)
        time.sleep(0.5)
        os.kill(child, signal.SIGTERM)
        end = time.monotonic() + (20 if shielded else 1)
        while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
            time.sleep(0.05)
        if not ended[0]:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        assert ended == ((child, 0) if shielded else (0, 0))
    finally:
        signals.listen_no_more()
