"""A stop changes nothing where validation is on either: best values, schedules, and which files are kept."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from mclip_fairseq.resilience import resuming
from mclip_fairseq.storage import sealed
from mclip_fairseq.storage.errors import UserError
from tests.integration.test_resume import options
from tests.runs import difference, losses_of, state_of

Train = Callable[..., str]
INTERVAL = 4
EPOCH = 13  # updates of an epoch
KEPT = (
    *("--save-interval-updates", INTERVAL, "--keep-interval-updates", "2", "--keep-last-epochs", "1"),
    *("--keep-best-checkpoints", "2"),
)
RETRIEVAL = (
    *("--valid-retrieval", "--best-checkpoint-metric", "mean_recall", "--maximize-best-checkpoint-metric"),
    *("--patience", "50"),
)
PLATEAU = ("--lr-scheduler", "reduce_lr_on_plateau", "--lr-patience", "0", "--lr-shrink", "0.5")
SCHEDULES = {
    "inverse_sqrt": (),
    "plateau": PLATEAU,
    "patient plateau": (*PLATEAU[:3], "1", "--lr-threshold", "0.3"),
    "fixed": ("--lr-scheduler", "fixed", "--lr", "0.003,0.002,0.001", "--force-anneal", "3"),
    "polynomial": ("--lr-scheduler", "polynomial_decay", "--total-num-update", "40"),
    "cosine": ("--lr-scheduler", "cosine", "--lr-period-updates", "9", "--warmup-updates", "0"),
    "step": ("--lr-scheduler", "step", "--lr-deacy-period", "5", "--warmup-updates", "0"),
}


def validated(corpus: Path, folder: Path, *more: object) -> list[object]:
    """The options of tests/integration/test_resume.py, with validation and all checkpoints."""
    command = options(corpus, "trikd", "--num-workers", "0", "--save-dir", folder, *more)
    return [option for option in command if option not in ("--disable-validation", "--no-epoch-checkpoints")]


def check_equal(one: Path, two: Path) -> None:
    """Both runs have kept the same files, with the same content."""
    names = sorted(path.name for path in one.glob("*.pt"))
    assert names == sorted(path.name for path in two.glob("*.pt"))
    assert len(names) >= 5
    for name in names:
        assert difference(state_of(one, name), state_of(two, name)) == "", name


@pytest.mark.parametrize(
    ("schedule", "metric"),
    [
        ("inverse_sqrt", ()),
        ("plateau", RETRIEVAL),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                *((schedule, ()) for schedule in SCHEDULES if schedule != "inverse_sqrt"),
                # To schedules that do not look at the metric it does not matter.
                *((schedule, RETRIEVAL) for schedule in ("inverse_sqrt", "patient plateau")),
            )
        ),
    ],
)
def test_a_stop_with_validation_changes_nothing(
    schedule: str, metric: Sequence[str], tiny_corpus: Path, run_train: Train, tmp_path: Path
) -> None:
    """Stops in mid-epoch where a save is due, at the end of an epoch by --max-epoch, and by --max-update."""
    more = (*KEPT, *SCHEDULES[schedule], *metric)
    log = run_train(*validated(tiny_corpus, tmp_path / "one", *more, "--max-update", 28))
    best = state_of(tmp_path / "one")["optimizer_history"][-1]["lr_scheduler_state"]
    stopped = validated(tiny_corpus, tmp_path / "two", *more)
    run_train(*stopped, "--max-update", INTERVAL)
    run_train(*stopped, "--max-epoch", "1")
    run_train(*stopped, "--max-update", 5 * INTERVAL)
    resumed = run_train(*stopped, "--max-update", 28)
    check_equal(tmp_path / "one", tmp_path / "two")
    assert schedule not in ("inverse_sqrt", "plateau") or isinstance(best["best"], float)
    assert losses_of(resumed)[28] == losses_of(log)[28]


@pytest.mark.parametrize("counted", [True, False], ids=["counted", "the negative control: fairseq forgets them"])
def test_bad_epochs_are_counted_across_a_stop(
    counted: bool, tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss falls by 90 percent: with a patience of one, the rate is halved after the third epoch."""
    more = (*PLATEAU[:2], "--lr-patience", "1", "--lr-shrink", "0.5", "--lr-threshold", "0.9", "--no-epoch-checkpoints")
    run_train(*validated(tiny_corpus, tmp_path / "one", *more, "--max-epoch", "4"))
    if not counted:
        monkeypatch.setattr(resuming, "restore", lambda trainer, state: None)
    for epochs in ("3", "4"):
        run_train(*validated(tiny_corpus, tmp_path / "two", *more, "--max-epoch", epochs))
    one, two = (state_of(tmp_path / name)["last_optimizer_state"]["param_groups"][0]["lr"] for name in ("one", "two"))
    assert one == pytest.approx(0.0015)
    assert two == pytest.approx(0.0015 if counted else 0.003)
    assert (difference(state_of(tmp_path / "one"), state_of(tmp_path / "two")) == "") == counted


def test_without_the_replay_the_best_value_is_missing(
    tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control: fairseq tells the schedule after it has saved."""
    monkeypatch.setattr(resuming, "replay_validation_loss", lambda trainer, state: None)
    run_train(*validated(tiny_corpus, tmp_path / "one", "--max-epoch", "2"))
    for epochs in ("1", "2"):
        run_train(*validated(tiny_corpus, tmp_path / "two", "--max-epoch", epochs))
    assert "lr_scheduler_state.best" in difference(state_of(tmp_path / "one"), state_of(tmp_path / "two"))


def test_more_epochs_after_the_end(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    run_train(*validated(tiny_corpus, tmp_path / "one", *KEPT, *PLATEAU, "--max-epoch", "3"))
    for epochs in ("1", "1", "3"):  # the second call has nothing to do
        run_train(*validated(tiny_corpus, tmp_path / "two", *KEPT, *PLATEAU, "--max-epoch", epochs))
    check_equal(tmp_path / "one", tmp_path / "two")


@pytest.mark.parametrize(
    "number",
    [
        errno.ENOSPC,
        errno.ESTALE,
        *(pytest.param(number, marks=pytest.mark.slow) for number in (errno.EROFS, errno.ENOENT, errno.EIO)),
    ],
)
def test_a_disk_that_fails_costs_the_updates_since_the_last_save(
    number: int, tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Full, read-only, vanished, stale or broken at the third save: one sentence, older files whole, an equal end."""
    run_train(*validated(tiny_corpus, tmp_path / "one", *KEPT, "--max-update", 16))
    command = validated(tiny_corpus, tmp_path / "two", *KEPT, "--max-update", 16)
    saves = list[str]()
    write = sealed._temporary

    def failing(path: Path) -> object:
        saves.append(path.name)
        if any(f"_{2 * INTERVAL}" in name for name in saves):
            raise OSError(number, os.strerror(number), str(path))
        return write(path)

    with monkeypatch.context() as patch:
        patch.setattr(sealed, "_temporary", failing)
        patch.setattr(sealed.time, "sleep", lambda seconds: None)
        with pytest.raises(UserError, match=r"cannot be written \(.*\); make room or give another directory"):
            run_train(*command)
    assert state_of(tmp_path / "two")["optimizer_history"][-1]["num_updates"] == INTERVAL
    run_train(*command)
    check_equal(tmp_path / "one", tmp_path / "two")


def test_a_vanished_directory_is_one_sentence(tiny_corpus: Path, run_train: Train, tmp_path: Path) -> None:
    """The mount comes back empty: nothing that was trained is there, and a new run would begin from scratch."""
    folder = tmp_path / "run"
    run_train(*validated(tiny_corpus, folder, *KEPT, "--max-update", INTERVAL))
    shutil.rmtree(folder)
    folder.write_text("")
    with pytest.raises(UserError, match=r"--save-dir .*/run: is not a directory; give another one"):
        run_train(*validated(tiny_corpus, folder, *KEPT, "--max-update", 2 * INTERVAL))
