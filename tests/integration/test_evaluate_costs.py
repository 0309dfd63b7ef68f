"""`mclip-evaluate --costs`: what a model needs, in its report and in the comparison."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.cli.evaluate import main
from mclip_fairseq.evaluation import costs
from mclip_fairseq.evaluation.reports.report import format_costs
from mclip_fairseq.storage.errors import UserError
from tests.colours import COLOURS, draw_colours
from tests.tiny_models import tiny_clip_directory

LEGACY = Path(__file__).parents[1] / "data" / "legacy" / "exported"


@pytest.fixture(scope="module")
def model() -> MultilingualCLIP:
    return MultilingualCLIP.from_pretrained(LEGACY, device="cpu")


def test_costs_by_hand(model: MultilingualCLIP) -> None:
    measured = costs.measure_costs(model, seconds=0.05)
    modules = [model.tower.module, model.tower.image_module]
    assert measured["dim"] == model.dim
    assert measured["parameters"] == sum(weight.numel() for module in modules for weight in module.parameters())
    weights = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    assert measured["memory"] == sum(tensor.numel() * tensor.element_size() for tensor in weights)
    assert measured["texts_per_second"] > 0
    assert measured["images_per_second"] > 0
    halved = MultilingualCLIP.from_pretrained(LEGACY, device="cpu", dtype=torch.float16)
    memory = sum(tensor.numel() * tensor.element_size() for tensor in costs.tensors_of(halved))
    assert memory == 2 * measured["parameters"]


def test_a_dual_encoder_of_transformers_has_both_speeds(tmp_path: Path) -> None:
    peer = MultilingualCLIP.from_pretrained(tiny_clip_directory(tmp_path / "clip"), device="cpu")
    measured = costs.measure_costs(peer, seconds=0.01)
    assert measured["images_per_second"] > 0
    assert measured["parameters"] == sum(weight.numel() for weight in peer.tower.module.parameters())


def test_rate_counts_what_was_encoded(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(costs.time, "perf_counter", lambda: now[0])

    def encode() -> torch.Tensor:
        now[0] += 0.5
        return torch.zeros(1)

    assert costs.rate(encode, 8, seconds=2) == 16


def test_shared_weights_count_once_and_missing_images_are_no_error(
    model: MultilingualCLIP, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = model.tower.module
    own = sum(weight.numel() for weight in text.parameters())

    def missing(self: object) -> None:
        raise UserError("the teacher is not here")

    monkeypatch.setattr(type(model.tower), "teacher", property(missing))
    measured = costs.measure_costs(model, seconds=0.01)
    assert (measured["parameters"], measured["images_per_second"]) == (own, None)
    monkeypatch.setattr(type(model.tower), "image_module", property(lambda self: text))
    assert costs.count_parameters(model) == own


def test_reports_and_comparison_show_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed (pip install mclip_fairseq[evaluate])")
    monkeypatch.setattr(costs, "SECONDS", 0.01)
    monkeypatch.chdir(tmp_path)
    draw_colours(tmp_path / "photos")
    Path("captions").write_text("".join(f"{name}\n" for name in COLOURS), encoding="utf-8")
    Path("ids").write_text("".join(f"{name}\n" for name in COLOURS), encoding="utf-8")
    command = ["--model", str(LEGACY), str(LEGACY), "--name", "one", "two", "--captions", "en=captions", "--ids", "ids"]
    command += ["--images", "photos", "--output", "out", "--queries", "0", "--device", "cpu"]
    assert main(command) == 0
    assert "texts/s" not in capsys.readouterr().out
    assert main([*command, "--costs"]) == 0  # the reports are up to date, the costs are new
    printed = capsys.readouterr().out
    assert "report.json is up to date" in printed
    lines = printed.splitlines()
    (header,) = (number for number, line in enumerate(lines) if "texts/s" in line)
    assert [line.split()[1] for line in lines[header + 2 : header + 4]] == ["one", "two"]
    assert "texts/s" in Path("out/comparison.md").read_text(encoding="utf-8")
    assert "texts/s" in Path("out/comparison.html").read_text(encoding="utf-8")
    report = json.loads(Path("out/comparison.json").read_text(encoding="utf-8"))["reports"][0]
    assert report["model"]["costs"]["dim"] == 16
    assert format_costs([report]).count("\n") == 2
    alone = ["--model", str(LEGACY), *command[6:], "--output", "alone"]
    assert main(alone) == 0
    capsys.readouterr()
    assert main([*alone, "--costs"]) == 0
    printed = capsys.readouterr().out
    assert "report.json is up to date" in printed
    assert "texts/s" in printed
