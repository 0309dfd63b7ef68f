"""Two gloo ranks that train on images in tars: together they train on every sample once, also when they resume."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests import runs
from tests.runs import difference, free_ports, start_ranks, state_of
from tests.tars import split_tars
from tests.tiny_data import pixel_options

pytest.importorskip("fsspec", reason="needs the extra scale")
pytestmark = pytest.mark.distributed
SIZES = ("--batch-size", "13", "--required-batch-size-multiple", "1")
UPDATES = 4  # of one epoch: 104 captions in batches of 13 on two ranks


def train_and_note(rank: int, world: int, commands: list[list[str]], ports: list[int], folder: str) -> None:
    """One rank that notes the samples on which each run trains."""
    from mclip_fairseq.tasks.sampled import SampledTask

    train_step = SampledTask.train_step

    def noted(task: Any, sample: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        print("samples", *sample["id"].tolist())  # in the log of the run
        return train_step(task, sample, *arguments, **options)

    SampledTask.train_step = noted  # type: ignore[assignment]
    runs.train(rank, world, commands, ports, folder)


def samples_of(log: Path) -> list[int]:
    """The samples that a log names."""
    lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("samples ")]
    return [int(number) for line in lines for number in line.split()[1:]]


def test_ranks_share_the_images_of_tars_and_resume(
    photos: Path, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "cache"))
    split_tars(photos / "images", tmp_path / "tars", 5)
    common = ("--image-root", tmp_path / "tars" / "*.tar", *SIZES, *runs.GLOO)

    def command(name: str, updates: int) -> list[str]:
        options = pixel_options(photos, tiny_corpus / "tokenizer", tmp_path / name, *common)
        return [*options, "--max-update", str(updates), "--distributed-world-size", "2"]

    commands = [command("whole", UPDATES), command("broken", UPDATES // 2), command("broken", UPDATES)]
    start_ranks("train_and_note", 2, (commands, free_ports(3), str(tmp_path)), file=__file__)
    assert difference(state_of(tmp_path / "whole"), state_of(tmp_path / "broken")) == ""

    whole, first, rest = ([samples_of(tmp_path / f"run{run}.rank{rank}") for rank in range(2)] for run in range(3))
    assert sorted(whole[0] + whole[1]) == list(range(104))
    assert [len(samples) for samples in first] == [26, 26]
    assert [before + after for before, after in zip(first, rest, strict=True)] == whole


if __name__ == runs.RANK:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    function, values = call  # type: ignore[name-defined] # noqa: F821
    globals()[function](*values)
