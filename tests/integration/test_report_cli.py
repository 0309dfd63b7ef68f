"""`mclip-report` on what fairseq-train really logs."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq.cli.report import main
from mclip_fairseq.evaluation.reports.training_log import read_curves
from tests.tiny_data import mte_options


@pytest.fixture(scope="module")
def run(tiny_corpus: Path, run_train: Callable[..., str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four updates: `train.log` in JSON and `tensorboard/` by fairseq's options; `shown/` is what a terminal shows."""
    folder = tmp_path_factory.mktemp("run")
    logged = ("--log-format", "json", "--log-interval", "1", "--max-update", "4", "--max-tokens", "2000")
    file = ("--log-file", folder / "train.log", "--tensorboard-logdir", folder / "tensorboard")
    text = run_train(*mte_options(tiny_corpus, folder), *logged, *file, "--contrastive-weight", "1")
    for name in ("fairseq_cli.train", "fairseq.logging.progress_bar"):
        logging.getLogger(name).handlers.clear()
    (folder / "shown").mkdir()
    (folder / "shown" / "train.log").write_text(text, encoding="utf-8")
    return folder


def test_both_logs_give_the_same_curves(run: Path) -> None:
    logged, shown = read_curves([run / "train.log"]), read_curves([run / "shown" / "train.log"])
    assert logged.points == shown.points


def test_tensorboard_has_the_same_numbers(run: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    curves = read_curves([run / "train.log"])
    for place, metric in (("train_inner", "loss"), ("valid", "contrastive_loss")):
        events = EventAccumulator(str(run / "tensorboard" / place)).Reload()
        shown = {event.step: event.value for event in events.Scalars(metric)}
        assert shown == pytest.approx(curves.points[place][metric], abs=0.001)


def test_curves_and_page(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    curves = read_curves([run / "train.log"])
    assert list(curves.points["train_inner"]["loss"]) == [1, 2, 3, 4]
    assert list(curves.points["valid"]["contrastive_loss"])[-1] == 4
    assert {"lr", "gnorm", "accuracy"} <= set(curves.metrics)
    assert main([str(run)]) == 0
    assert "valid: " in capsys.readouterr().out
    page = (run / "report.html").read_text(encoding="utf-8")
    assert page.count("<img") == len(curves.metrics)
    assert page.index("Best checkpoint") < page.index("--lr") < page.index("<img")
    best = min(curves.points["valid"]["loss"].items(), key=lambda point: point[1])
    assert f"update {best[0]}: loss {best[1]:g} in validation" in page
    assert curves.seconds[0] >= 0
    assert curves.options["task"]["_name"] == "mte"
    assert "http" not in page


def test_a_full_disk_leaves_the_older_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page that cannot be finished is not begun in the older one's place."""
    line = '2026-11-27 12:00:00 | INFO | train_inner | {"epoch": 1, "loss": "2.5", "num_updates": "1"}\n'
    (tmp_path / "train.log").write_text(line, encoding="utf-8")
    (tmp_path / "report.html").write_text("older", encoding="utf-8")

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main([str(tmp_path)]) == 2
    assert f"mclip-report: error: {tmp_path}/report.html: No space left on device" in capsys.readouterr().err
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "older"
    assert len(list(tmp_path.iterdir())) == 2


def test_a_resumed_run_replaces_what_it_logs_again(tmp_path: Path) -> None:
    line = '2026-01-01 | INFO | train_inner | {{"loss": "{}", "num_updates": "{}"}}\n'
    (tmp_path / "a.log").write_text(line.format(9, 1) + line.format(8, 2))
    (tmp_path / "b.log").write_text(line.format(7, 2) + line.format(6, 3))
    curves = read_curves([tmp_path / "a.log", tmp_path / "b.log"])
    assert curves.points["train_inner"]["loss"] == {1: 9.0, 2: 7.0, 3: 6.0}


@pytest.mark.parametrize("updates", ['"inf"', '"nan"', '"1e999"', "9" * 400, "NaN", "null", "[]"])
def test_a_line_without_a_number_of_updates_is_left_out(
    updates: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.log").write_text(
        f'{{"loss": "9", "num_updates": {updates}}}\n{{"loss": "nan", "num_updates": "2"}}\n'
    )
    curves = read_curves([tmp_path / "a.log"])
    assert list(curves.points["train_inner"]["loss"]) == [2]  # a loss that is not a number is kept
    (tmp_path / "a.log").write_text(f'{{"loss": "9", "num_updates": {updates}}}\n')
    assert main([str(tmp_path)]) == 2
    assert "holds no logged numbers" in capsys.readouterr().err


def test_control_characters_in_names_of_metrics_are_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.log").write_text(r'{"\ud800a": "9", "\u001b[31mb": 8, "num_updates": "1"}' + "\n")
    assert main([str(tmp_path)]) == 0
    assert "train_inner: a 9, [31mb 8" in capsys.readouterr().out


def test_nothing_to_draw(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path)]) == 2
    assert "holds no .log file; train with --log-format json" in capsys.readouterr().err
    (tmp_path / "train.log").write_text("epoch 001: loss=3\n")
    assert main([str(tmp_path)]) == 2
    assert "holds no logged numbers" in capsys.readouterr().err
    (tmp_path / "train.log").write_text("x | INFO | train | {broken}\n")
    assert main([str(tmp_path)]) == 2
    assert "train.log, line 1: is not JSON" in capsys.readouterr().err
