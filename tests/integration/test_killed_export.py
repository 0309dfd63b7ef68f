"""SIGKILL at every step of exporting: the output is absent, the older one or the new one, and never a mixture."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.export import main as export
from mclip_fairseq.cli.extract_mte import main as extract_mte
from mclip_fairseq.formats.auto import MCLIPConfig, MCLIPModel
from mclip_fairseq.storage.files import file_sha256
from tests.kills import kill_everywhere
from tests.runs import HANG, forked
from tests.tiny_data import mte_options, pixel_options

Hashes = dict[str, str]


def hashes(folder: Path) -> Hashes:
    """Path -> SHA-256 of all files below a folder; empty where there is none."""
    return {str(path.relative_to(folder)): file_sha256(path) for path in folder.rglob("*") if path.is_file()}


def kills_tear_nothing(run: Callable[[], object], folder: Path, older: Path | None = None, stride: int = 1) -> int:
    """Kill a command that writes `folder/out` at one step after the other, and give it once more after each kill.

    Args:
        run: the command; it returns its status.
        folder: for the output, otherwise empty.
        older: what `folder/out` holds before; None: it is absent.
        stride: 3 kills at every third step.

    Returns:
        number of kills.
    """
    output, kills = folder / "out", 0

    def reset() -> None:
        shutil.rmtree(output, ignore_errors=True)
        if older is not None:
            shutil.copytree(older, output)

    reset()
    before = hashes(output)
    assert not run()
    after = hashes(output)
    assert before != after
    reset()
    for step in kill_everywhere(run, folder, stride):
        assert hashes(output) in (before, after), step
        assert not run(), step
        assert hashes(output) == after, step
        assert [path.name for path in folder.iterdir()] == ["out"], step
        reset()
        kills += 1
    return kills


@pytest.fixture(scope="module")
def checkpoints(
    photos: Path, tiny_corpus: Path, run_train: Callable[..., str], tmp_path_factory: pytest.TempPathFactory
) -> list[Path]:
    """One model after one update and after four."""
    found = []
    for updates in (1, 4):
        folder = tmp_path_factory.mktemp("trained")
        source = ("--image-features", photos / "features", "--max-update", updates)
        run_train(*pixel_options(photos, tiny_corpus / "tokenizer", folder, *source))
        found.append(folder / "checkpoint_last.pt")
    return found


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_an_export_is_absent_or_whole(stride: int, checkpoints: list[Path], tmp_path: Path) -> None:
    command = [str(checkpoints[0]), "--output", str(tmp_path / "out"), "--license", "mit"]
    assert kills_tear_nothing(lambda: export(command), tmp_path, stride=stride) >= 30 // stride
    assert MultilingualCLIP.from_pretrained(tmp_path / "out", device="cpu").dim


@pytest.mark.parametrize("stride", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_saving_over_an_older_model_of_transformers(stride: int, checkpoints: list[Path], tmp_path: Path) -> None:
    older = tmp_path / "older"
    assert export([str(checkpoints[0]), "--output", str(older)]) == 0
    tower = MultilingualCLIP.from_pretrained(checkpoints[1], device="cpu").tower
    model = MCLIPModel(MCLIPConfig.from_pretrained(older), tower)
    (tmp_path / "work").mkdir()
    command = lambda: model.save_pretrained(tmp_path / "work/out")  # noqa: E731
    assert kills_tear_nothing(command, tmp_path / "work", older, stride) >= 30 // stride


def test_an_archive_replaces_an_older_one_as_a_whole(
    tiny_corpus: Path, run_train: Callable[..., str], tmp_path: Path
) -> None:
    archives = [tmp_path / "0", tmp_path / "1"]
    for number, archive in enumerate(archives):
        run_train(*mte_options(tiny_corpus, archive), "--max-tokens", "600", "--max-update", number + 1)
    tokenizer, older = str(tiny_corpus / "tokenizer"), tmp_path / "older"

    def extract(number: int, output: Path) -> int:
        return extract_mte(
            [str(archives[number] / "checkpoint_last.pt"), "--tokenizer", tokenizer, "--output", str(output)]
        )

    assert extract(0, older) == 0
    (tmp_path / "work").mkdir()
    assert kills_tear_nothing(lambda: extract(1, tmp_path / "work/out"), tmp_path / "work", older) > 8


def test_a_process_that_is_killed_while_it_writes(checkpoints: list[Path], tmp_path: Path) -> None:
    command = [str(checkpoints[0]), "--output", str(tmp_path / "work/out")]
    process = forked(export, command)
    process.start()
    end = time.monotonic() + HANG
    while not (written := list((tmp_path / "work").glob(".out.*.part/*"))) and process.is_alive():
        assert time.monotonic() < end
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert written
    assert not (tmp_path / "work/out").exists()
    assert export(command) == 0
    assert [path.name for path in (tmp_path / "work").iterdir()] == ["out"]
