"""N updates in one go equal the same N with a stop in between, bit for bit."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mclip_fairseq.resilience import checking, launch, resuming
from mclip_fairseq.storage import files, sealed
from tests.runs import difference, losses_of, state_of, train_on_ranks

Train = Callable[..., str]
UPDATES = 16  # the tiny corpus makes 13 an epoch
LOGGED = 4


def options(corpus: Path, task: str, *more: object) -> list[object]:
    """All that could break at once: dropout, shuffling, sampled languages, accumulation, averages over log lines."""
    common = [
        *("--sampling-temperature", "5", "--dropout", "0.3", "--batch-size", "8", "--update-freq", "2"),
        *("--optimizer", "fused_adamw", "--lr", "0.003", "--lr-scheduler", "inverse_sqrt", "--warmup-updates", "5"),
        *("--log-format", "json", "--log-interval", LOGGED, "--disable-validation", "--no-epoch-checkpoints"),
    ]
    if task == "mte":
        return [
            *(corpus / "mte", "--task", "mte", "--langs", "en,de,fr", "--lang-pairs", "en-de,en-fr"),
            *("--arch", "mte_tiny", "--criterion", "mte", "--contrastive-weight", "2", *common, *more),
        ]
    return [
        *(corpus / "captions", "--task", "trikd", "--langs", "en,de", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--image-features", corpus / "features" / "image", "--text-features", corpus / "features" / "text"),
        *("--freeze-text", "none", "--text-text-weight", "0.5", *common, *more),
    ]


def uninterrupted(run_train: Train, corpus: Path, task: str, folder: Path, *more: object) -> str:
    """The run that never stops, and a checkpoint of each of its updates."""
    every = ("--save-interval-updates", "1", "--save-dir", folder, "--max-update", UPDATES)
    return run_train(*options(corpus, task, *every, *more))


def checkpoint_after(folder: Path, updates: int) -> Path:
    """The last checkpoint of a run that stopped after this many updates."""
    return next(folder.glob(f"checkpoint_*_{updates}.pt"))


def check_resumed(log: str, resumed: str, one: Path, two: Path, after: int) -> None:
    """Parameters, optimizer, learned scale, schedule, position and every logged average agree."""
    assert difference(state_of(one), state_of(two)) == ""
    expected = {updates: line for updates, line in losses_of(log).items() if updates > after}
    assert expected
    assert losses_of(resumed) == expected


def resume(run_train: Train, corpus: Path, task: str, source: Path, folder: Path, *more: object) -> str:
    folder.mkdir()
    shutil.copy(source, folder / "checkpoint_last.pt")
    return run_train(*options(corpus, task, "--save-dir", folder, "--max-update", UPDATES, *more))


@pytest.mark.parametrize("task", ["mte", "trikd"])
def test_a_stop_changes_nothing(task: str, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    log = uninterrupted(run_train, tiny_corpus, task, tmp_path / "uninterrupted", "--num-workers", "0")
    state = state_of(tmp_path / "uninterrupted")
    assert ("logit_scale" in state["model"]) == (task == "trikd")
    assert state["last_optimizer_state"]["state"]
    epoch = [
        path for path in (tmp_path / "uninterrupted").glob("checkpoint_*.pt") if path.name.startswith("checkpoint_2")
    ]
    first_of_epoch = min(int(path.stem.split("_")[2]) for path in epoch)
    # In mid-epoch and within the mean of a log line, loaded by other processes; and across the end of an epoch.
    for updates, workers in ((6, "2"), (first_of_epoch, "0")):
        folder = tmp_path / f"after{updates}"
        source = checkpoint_after(tmp_path / "uninterrupted", updates)
        resumed = resume(run_train, tiny_corpus, task, source, folder, "--num-workers", workers)
        check_resumed(log, resumed, tmp_path / "uninterrupted", folder, updates)


@pytest.mark.parametrize("kept", [True, False])
def test_parameters_of_half_precision_come_back_in_full(
    kept: bool, tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """fairseq saves them rounded, as the negative control shows. An overflow would need CUDA: the scale is small.

    For the same reason --fp16 is refused without a GPU, except here.
    """
    monkeypatch.setattr(launch, "check_launch", lambda cfg: None)
    more = ("--num-workers", "0", "--fp16", "--fp16-no-flatten-grads", "--fp16-init-scale", "4")
    log = uninterrupted(run_train, tiny_corpus, "mte", tmp_path / "uninterrupted", *more)
    if not kept:
        monkeypatch.setattr(resuming, "restore", lambda trainer, state: None)
    source = checkpoint_after(tmp_path / "uninterrupted", 10)
    resumed = resume(run_train, tiny_corpus, "mte", source, tmp_path / "two", *more)
    if kept:
        check_resumed(log, resumed, tmp_path / "uninterrupted", tmp_path / "two", 10)
    else:
        assert ".model." in difference(state_of(tmp_path / "uninterrupted"), state_of(tmp_path / "two"))


def test_restarted_annealing_is_warned_about(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    schedule = ("--lr-scheduler", "polynomial_decay", "--force-anneal", "1", "--total-num-update", "40")
    common = options(tiny_corpus, "trikd", "--num-workers", "0", "--save-dir", tmp_path, *schedule, "--max-update")
    run_train(*common, "3")
    assert "--force-anneal 1: the rest of epoch 1 is annealed from the learning rate of its stop" in run_train(
        *common, "4"
    )


def test_a_suffix_and_a_missing_optimizer(tiny_corpus: Path, run_train: Train, stopped: Path, tmp_path: Path) -> None:
    """--checkpoint-suffix works the same; a checkpoint without optimizer state cannot be resumed."""
    for path in stopped.glob("*.pt"):
        shutil.copy(path, tmp_path / f"{path.stem}_a.pt")
    (tmp_path / "checkpoint_last_a.pt").write_bytes(b"")
    common = options(tiny_corpus, "trikd", "--num-workers", "0", "--max-update", "4", "--save-dir")
    log = run_train(*common, tmp_path, "--checkpoint-suffix", "_a")
    assert "skipped checkpoint checkpoint_last_a.pt (it is empty)" in log
    assert f"continuing from {tmp_path / 'checkpoint_1_3_a.pt'}" in log
    assert state_of(tmp_path, "checkpoint_last_a.pt")["optimizer_history"][-1]["num_updates"] == 4
    run_train(*common, tmp_path / "bare", "--no-save-optimizer-state")
    with pytest.raises(ValueError, match=r"checkpoint_last\.pt: has no optimizer state .* start another with its"):
        run_train(*common, tmp_path / "bare")


def test_ranks_that_do_not_see_the_checkpoint_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checking, "sum_over_ranks", lambda count: count + 2.0)
    checkpoint = SimpleNamespace(save_dir=str(tmp_path))
    trainer: Any = SimpleNamespace(data_parallel_world_size=3, device="cpu", checkpoint_suffix="")
    trainer.cfg = SimpleNamespace(checkpoint=checkpoint)
    with pytest.raises(ValueError, match=r"checkpoint_last\.pt: only 2 of 3 ranks see this file; let --save-dir be"):
        checking.check_seen_by_all(trainer, "checkpoint_last.pt")
    (tmp_path / "checkpoint_last.pt").touch()
    checking.check_seen_by_all(trainer, "checkpoint_last.pt")


def test_a_stop_at_the_end_of_an_epoch_keeps_the_running_means(
    tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """Its last checkpoint belongs to the next epoch, and the log line that spans both counts the steps of both."""
    log = uninterrupted(run_train, tiny_corpus, "trikd", tmp_path / "uninterrupted", "--num-workers", "0")
    stopped = options(tiny_corpus, "trikd", "--save-dir", tmp_path / "stopped", "--num-workers", "0")
    run_train(*stopped, "--max-epoch", "1")
    resumed = run_train(*stopped, "--max-update", UPDATES)
    done = state_of(tmp_path / "stopped")
    assert done["extra_state"]["train_iterator"]["epoch"] == 2
    end = min(updates for updates in losses_of(resumed))
    assert end % LOGGED == 0
    check_resumed(log, resumed, tmp_path / "uninterrupted", tmp_path / "stopped", end - 1)
    again = run_train(*stopped, "--max-update", UPDATES)  # fairseq alone would take one more update
    assert f"has all its {UPDATES} updates already" in again
    assert difference(state_of(tmp_path / "stopped"), done) == ""


def test_patience_counts_over_a_stop(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """No validation beats the first one while nothing is learned: the run ends after three more, two before a stop."""
    patient = ("--num-workers", "0", "--validate-interval-updates", "1", "--patience", "3", "--lr", "0", "--batch-size")
    common = options(tiny_corpus, "trikd", "--save-dir", tmp_path, *patient, "32")
    common.remove("--disable-validation")
    run_train(*common, "--max-update", "3")
    log = run_train(*common, "--max-update", "9")
    assert "early stop since valid performance hasn't improved for last 3 runs" in log
    assert state_of(tmp_path)["optimizer_history"][-1]["num_updates"] == 4
    assert "has ended already, after 4 updates, by --patience 3" in run_train(*common, "--max-update", "9")
    assert "by --stop-time-hours 1e-06" in run_train(*common, "--patience", "9", "--stop-time-hours", "1e-6")
    assert state_of(tmp_path)["optimizer_history"][-1]["num_updates"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("task", ["mte", "trikd"])
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_stop_after_any_update_changes_nothing(
    task: str, workers: str, tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    log = uninterrupted(run_train, tiny_corpus, task, tmp_path / "uninterrupted", "--num-workers", workers)
    sources = sorted((tmp_path / "uninterrupted").glob("checkpoint_*_*.pt"))
    assert len(sources) >= UPDATES - 2
    for source in sources:
        updates = int(source.stem.split("_")[2])
        if updates < UPDATES:
            folder = tmp_path / f"after{updates}"
            resumed = resume(run_train, tiny_corpus, task, source, folder, "--num-workers", workers)
            check_resumed(log, resumed, tmp_path / "uninterrupted", folder, updates)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (("--batch-size", "4"), r"middle of epoch 1 with --batch-size 8 \(now 4\).*--reset-dataloader"),
        (("--seed", "5", "--update-freq", "1"), r"--update-freq \[2\] \(now \[1\]\); --seed 1 \(now 5\)"),
        (("--langs", "en"), r"--langs en,de \(now en\)"),
    ],
)
def test_another_meaning_of_the_position_is_refused(
    change: Sequence[str], sentence: str, tiny_corpus: Path, run_train: Train, stopped: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(stopped, folder)
    changed = options(tiny_corpus, "trikd", "--save-dir", folder, "--num-workers", "0", *change)
    with pytest.raises(ValueError, match=sentence):
        run_train(*changed, "--max-update", "4")
    if change[0] == "--batch-size":
        assert "Loaded checkpoint" in run_train(*changed, "--max-update", "4", "--reset-dataloader")


@pytest.fixture(scope="module")
def stopped(tiny_corpus: Path, run_train: Train, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that stopped in the middle of its first epoch, with two checkpoints."""
    folder = tmp_path_factory.mktemp("stopped")
    every = ("--save-interval-updates", "1", "--keep-interval-updates", "2")
    stop = ("--num-workers", "0", "--max-update", "3", "--save-dir", folder)
    run_train(*options(tiny_corpus, "trikd", *stop, *every))
    return folder


def test_other_training_data_are_refused(tiny_corpus: Path, run_train: Train, stopped: Path, tmp_path: Path) -> None:
    """As many captions, but not the same ones."""
    folder, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(stopped, folder)
    shutil.copytree(tiny_corpus, corpus)
    for kind in ("bin", "idx"):
        shutil.copy(corpus / f"captions/train.de-None.de.{kind}", corpus / f"captions/train.en-None.en.{kind}")
    changed = options(corpus, "trikd", "--save-dir", folder, "--num-workers", "0", "--max-update", "4")
    with pytest.raises(ValueError, match=r"data have changed since .*: en:0 \(104 samples then, 104 now\), so its"):
        run_train(*changed)
    assert "Loaded checkpoint" in run_train(*changed, "--reset-dataloader")


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda lines: [*lines, "another 1"], "of 98 symbols, but that of the data has 99; make the data again"),
        (
            lambda lines: lines[1::-1] + lines[2:],
            "of 98 symbols, but that of the data has other symbols, or another",
        ),
    ],
)
def test_another_dictionary_is_refused(
    change: Callable[[list[str]], list[str]],
    sentence: str,
    tiny_corpus: Path,
    run_train: Train,
    stopped: Path,
    tmp_path: Path,
) -> None:
    """One more symbol; and two in another order, which no shape of a tensor would give away."""
    folder, corpus = tmp_path / "run", tmp_path / "corpus"
    shutil.copytree(stopped, folder)
    shutil.copytree(tiny_corpus, corpus)
    for file in (corpus / "captions").glob("dict*.txt"):
        lines = change(file.read_text(encoding="utf-8").splitlines())
        file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    for more in ((), ("--reset-dataloader",), ("--restore-file", stopped / "checkpoint_last.pt")):
        changed = options(corpus, "trikd", "--save-dir", folder, "--num-workers", "0", "--max-update", "4", *more)
        with pytest.raises(ValueError, match=sentence):
            run_train(*changed)


def test_a_damaged_last_checkpoint_costs_nothing(
    tiny_corpus: Path, run_train: Train, stopped: Path, tmp_path: Path
) -> None:
    """The run continues from the newest file that verifies, says so, and ends like the undamaged one."""
    sound, damaged = tmp_path / "sound", tmp_path / "damaged"
    for folder in (sound, damaged):
        shutil.copytree(stopped, folder)
    for name in ("checkpoint_last.pt", "checkpoint_1_3.pt"):
        data = bytearray((damaged / name).read_bytes())
        data[len(data) // 3] ^= 4
        (damaged / name).write_bytes(data)
    logs = [
        run_train(*options(tiny_corpus, "trikd", "--save-dir", folder, "--num-workers", "0", "--max-update", "5"))
        for folder in (sound, damaged)
    ]
    assert "skipped checkpoint" not in logs[0]
    for name in ("checkpoint_last.pt", "checkpoint_1_3.pt"):
        assert f"skipped checkpoint {name} (its bytes are not those that were written)" in logs[1]
    assert f"continuing from {damaged / 'checkpoint_1_2.pt'}" in logs[1]
    assert difference(state_of(sound), state_of(damaged)) == ""
    (tmp_path / "given.pt").write_bytes(data)
    with pytest.raises(ValueError, match="its bytes are not those that were written; give another checkpoint"):
        run_train(*options(tiny_corpus, "trikd", "--save-dir", tmp_path, "--restore-file", tmp_path / "given.pt"))


class Forgetful(dict[str, Any]):
    """A dict that hands nothing out."""

    def get(self, key: str, default: Any = None) -> Any:
        return None


@pytest.mark.parametrize("handed_on", [True, False])
def test_a_checkpoint_is_hashed_and_mapped_once(
    handed_on: bool, tiny_corpus: Path, run_train: Train, stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When it is chosen; fairseq's loading uses that look. The negative control does not hand it on."""
    shutil.copytree(stopped, tmp_path / "run")
    hashed: list[Path] = []
    mapped: list[bool] = []
    hash_file, load = sealed._hash_before_seal, torch.load

    def counted_hash(path: Path) -> str:
        hashed.append(path)
        return hash_file(path)

    def counted_load(*arguments: Any, **keywords: Any) -> Any:
        mapped.append(keywords.get("mmap", False))
        return load(*arguments, **keywords)

    monkeypatch.setattr(sealed, "_hash_before_seal", counted_hash)
    monkeypatch.setattr(torch, "load", counted_load)
    if not handed_on:
        monkeypatch.setattr(resuming, "_checked", Forgetful())
        monkeypatch.setattr(files, "SETTLED_NS", 10**12)  # nor is the file remembered as sound
    run_train(*options(tiny_corpus, "trikd", "--save-dir", tmp_path / "run", "--num-workers", "0", "--max-update", "4"))
    assert len(hashed) == mapped.count(True) == (1 if handed_on else 2)


def test_the_comparison_can_fail(tiny_corpus: Path, run_train: Train, stopped: Path, tmp_path: Path) -> None:
    """The negative control: another seed of dropout after the stop, which no loss would give away, is noticed."""
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder, more in zip(folders, ((), ("--dropout", "0.31")), strict=True):
        shutil.copytree(stopped, folder)
        run_train(
            *options(tiny_corpus, "trikd", "--save-dir", folder, "--num-workers", "0", "--max-update", "4", *more)
        )
    assert ".model." in difference(state_of(folders[0]), state_of(folders[1]))


@pytest.mark.distributed
def test_a_stop_of_two_ranks_changes_nothing(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """Both tasks over two gloo ranks, with uneven shards; and one rank is refused what two have begun.

    The run that stops has two data workers on each rank, the other one none.
    """
    runs = []
    for task in ("mte", "trikd"):
        common = options(tiny_corpus, task, "--save-interval-updates", "1", "--num-workers")
        for folder, updates, workers in (("uninterrupted", 9, 0), ("stopped", 3, 2), ("stopped", 9, 2)):
            runs.append([*common, workers, "--save-dir", tmp_path / f"{task}-{folder}", "--max-update", updates])
    common.append(0)
    runs.append([*common, "--save-dir", tmp_path / "of-two", "--max-update", 3])
    logs = train_on_ranks(2, runs, tmp_path)
    for log in logs:
        assert all(output.endswith("exit status 0\n") for output in log), log
    with pytest.raises(ValueError, match=r"--distributed-world-size 2 \(now 1\)"):
        run_train(*common, "--save-dir", tmp_path / "of-two", "--max-update", "4")
    for number, task in ((0, "mte"), (3, "trikd")):
        one, two = tmp_path / f"{task}-uninterrupted", tmp_path / f"{task}-stopped"
        check_resumed(logs[number][0], logs[number + 2][0], one, two, 3)
