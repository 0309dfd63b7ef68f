"""`make gpu`: every section of benchmarks/gpu runs at toy sizes, and its losses are near float64."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import __main__ as program
from benchmarks.gpu import measuring
from benchmarks.gpu.losses import exactness

# What rounding the inputs' gradient to the type leaves, and float32 sums.
GRADIENT = {"float32": 2e-6, "float16": 1e-3, "bfloat16": 8e-3}


@pytest.fixture(autouse=True)
def _few_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "SECONDS", 0.0)


def test_losses_are_near_float64(device: torch.device) -> None:
    report = measuring.Report(device)
    exactness(report, measuring.TINY)
    assert len(report.rows) == 12
    for row in report.rows:
        dtype = row["what"].split(", ")[1]
        assert row["gradient"] < GRADIENT[dtype], row
        assert row["value"] < (1e-6 if dtype == "float32" else 1e-4), row


@pytest.mark.parametrize(
    "sections",
    [
        "ceilings,contrast,texts,retrieval",
        pytest.param("trikd,mte,features,images", marks=pytest.mark.slow),
    ],
)
def test_every_section_runs(
    sections: str, device: torch.device, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    chosen = ["--only", sections, "--device", device.type, "--out", str(tmp_path)]
    assert program.main(["--tiny", *chosen]) == 0
    rows = json.loads((tmp_path / "gpu.json").read_text())["figures"]
    assert {row["section"] for row in rows} >= set(sections.split(","))
    figures = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert all(map(math.isfinite, figures)), rows
    assert not any("error" in row for row in rows)
    assert [row["differing"] for row in rows if "differing" in row] == [0] * ("retrieval" in sections)
    shown = capfd.readouterr().out
    assert all(row["what"] in shown for row in rows)


def test_a_section_that_fails_does_not_end_the_others(
    device: torch.device, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(report: measuring.Report, size: measuring.Sizes) -> None:
        raise ValueError("no such thing")

    monkeypatch.setitem(program.SECTIONS, "ceilings", fails)
    assert program.main(["--tiny", "--device", device.type, "--only", "ceilings,retrieval"]) == 1
    shown = capsys.readouterr().out
    assert "ValueError: no such thing" in shown
    assert "ranks that differ" in shown


def test_no_section_begins_after_the_budget(device: torch.device, capsys: pytest.CaptureFixture[str]) -> None:
    assert program.main(["--tiny", "--device", device.type, "--only", "retrieval", "--budget", "-1"]) == 1
    assert "left out: no time remains" in capsys.readouterr().out


def test_real_sizes_need_a_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main(["--device", "cpu"])
    assert "torch finds no GPU here; --tiny runs the same code" in capsys.readouterr().err
