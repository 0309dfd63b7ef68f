"""`mclip-evaluate` from options to files, with a model whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mclip_fairseq.cli import evaluate as cli
from mclip_fairseq.encoding.galleries import FeatureGallery
from mclip_fairseq.evaluation.reports.comparison import protocol_words

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "black": (0, 0, 0)}
WORDS = {"rot": "red", "grün": "green", "blau": "blue", "赤": "red", "緑": "green", "青": "blue"}


class ColourModel:
    """Knows colours by name and by sight; "xx" means nothing to it."""

    name = "colours"
    fingerprint = "1"

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.identity = {"teacher": {"sha256": "abc"}}

    def encode_text(self, texts: Sequence[str], batch_size: int = 1, normalize: bool = False) -> Tensor:
        self.seen += texts
        return torch.tensor([self.feature(COLOURS.get(WORDS.get(text, text), (1, 1, 1))) for text in texts])

    def encode_image(self, images: Sequence[Path], batch_size: int = 1, normalize: bool = False) -> Tensor:
        pixels = []
        for path in images:
            with Image.open(path) as picture:
                pixels.append(picture.convert("RGB").getpixel((0, 0)))
        return torch.tensor([self.feature(pixel) for pixel in pixels])

    def encode_image_features(self, features: Tensor, batch_size: int = 1, normalize: bool = False) -> Tensor:
        return features.float()

    @staticmethod
    def feature(colour: Any) -> list[float]:
        vector = np.array([*colour, 1.0])
        return (vector / np.linalg.norm(vector)).tolist()


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> ColourModel:
    model = ColourModel()
    monkeypatch.setattr(cli, "load_model", lambda options, number: model)
    return model


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures of four colours, captions of three of them."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name, colour in COLOURS.items():
        Image.new("RGB", (8, 8), colour).save(tmp_path / "photos" / f"{name}.png")
    files = {
        "valid.ids": "red\ngreen\nblue\n",
        "valid.en": "red\ngreen\nblue\n",
        "valid.de": "rot\nblau\ngrün\n",  # the last two are swapped
        "valid.ja.tsv": "blue.png\t青\nred\t赤\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path


COMMAND = [
    "--model",
    "m",
    "--captions",
    "en=valid.en",
    "de=valid.de",
    "ja=valid.ja.tsv",
    "--ids",
    "valid.ids",
]


def test_numbers_table_and_files(model: ColourModel, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*COMMAND, "--images", "photos", "--output", "out", "--queries", "3", "--name", "Colours"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Colours\n\n| language")
    report = json.loads(Path("out/report.json").read_text(encoding="utf-8"))
    results = report["results"]
    assert [results[key]["t2i_R@1"] for key in results] == pytest.approx([100, 100 / 3, 100])
    assert [results[key]["i2t_R@1"] for key in results] == pytest.approx([100, 100 / 3, 100])
    assert report["average"]["without_en"]["t2i_R@1"] == pytest.approx(200 / 3)
    assert "mean_rank_variance" not in report  # Japanese has other images
    assert report["command"].startswith("mclip-evaluate --model m --captions en=valid.en")
    assert report["data"]["captions"]["ja"]["images"] == 2
    assert report["data"]["gallery"]["searched"] == 3
    assert report["data"]["gallery"]["count"] == 4
    assert (report["protocol"], report["gallery"], report["name"]) == ("strict", "captioned", "Colours")
    assert report["model"]["identity"] == model.identity
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "examples.png",
        "recall.png",
        "report.json",
        "report.md",
    ]
    assert sorted(model.seen) == sorted(["red", "green", "blue", "rot", "blau", "grün", "青", "赤"])


def test_all_images_are_distractors_when_asked(model: ColourModel, folder: Path) -> None:
    Path("valid.en").write_text("red\ngreen\nxx\n")  # equally near to all three colours, nearest to black
    arguments = ["--model", "m", "--captions", "en=valid.en", "--ids", "valid.ids", "--images", "photos"]
    searched = {}
    for gallery in ("captioned", "all"):
        assert cli.main([*arguments, "--gallery", gallery, "--output", gallery, "--queries", "0"]) == 0
        report = json.loads(Path(gallery, "report.json").read_text())
        searched[gallery] = report["data"]["gallery"]["searched"]
        assert report["results"]["en"]["ties"] == 1
        assert not Path(gallery, "examples.png").exists()
    assert searched == {"captioned": 3, "all": 4}


def test_hubs_are_corrected_as_a_protocol_of_its_own(
    model: ColourModel, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The bank is said in the report, whose words differ from those of a plain one."""
    (folder / "bank.en").write_text("green\nblack\n")
    (folder / "bank.ids").write_text("green\nblack\n")
    plain = [*COMMAND[:2], "--captions", "en=valid.en", "--ids", "valid.ids", "--images", "photos"]
    bank = ["--hub-captions", "en=bank.en", "--hub-ids", "bank.ids", "--hub-scale", "5"]
    assert cli.main([*plain, *bank, "--output", "out"]) == 0
    report = json.loads((folder / "out" / "report.json").read_text())
    assert report["hubs"]["scale"] == 5
    assert report["hubs"]["bank"]["en"]["captions"] == 2
    assert protocol_words(report) == "strict, all captions, hubs corrected"
    assert "Hubs are corrected with a bank of 2 captions" in capsys.readouterr().out
    assert cli.main([*plain, "--output", "out"]) == 0
    again = json.loads((folder / "out" / "report.json").read_text())
    assert again["key"] != report["key"]
    assert "hubs" not in again
    for options, message in (
        (["--hub-ids", "bank.ids"], "give these too"),
        ([*bank, "--rerank", "2"], "give one of the two"),
        (["--hub-captions", "de=bank.en", "--hub-ids", "bank.ids"], "has no captions in en"),
    ):
        assert cli.main([*plain, *options]) == 2
        assert message in capsys.readouterr().err


def test_released_protocol(model: ColourModel, folder: Path) -> None:
    assert cli.main([*COMMAND, "--images", "photos", "--protocol", "released", "--output", "out"]) == 0
    assert json.loads(Path("out/report.json").read_text())["protocol"] == "released"


class Store:
    """A feature directory in memory."""

    def __init__(self, sha256: str = "abc") -> None:
        self.ids = ["blue", "green", "red"]
        self.identity = {"sha256": sha256}
        self.manifest = {"modality": "image"}

    def take(self, rows: np.ndarray) -> np.ndarray:
        return np.array([ColourModel.feature(COLOURS[self.ids[row]]) for row in rows], dtype=np.float16)


@pytest.mark.parametrize("with_pictures", [False, True])
def test_feature_directory(
    model: ColourModel,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    with_pictures: bool,
) -> None:
    root = Path("photos") if with_pictures else None
    Path("features").mkdir()
    Path("features/manifest.json").write_text("{}")
    folder = Path("features")
    monkeypatch.setattr(cli, "open_galleries", lambda options: [FeatureGallery(Store(), folder, root)])
    arguments = ["--model", "m", "--captions", "de=valid.de", "--ids", "valid.ids", "--features", "features"]
    assert cli.main([*arguments, "--output", "out"]) == 0
    report = json.loads(Path("out/report.json").read_text())
    assert report["results"]["de"]["t2i_R@1"] == pytest.approx(100 / 3)
    assert report["data"]["gallery"]["manifest_sha256"].startswith("44136fa3")  # of "{}"
    assert Path("out/examples.png").exists() == with_pictures
    assert ("No examples.png" in capsys.readouterr().out) != with_pictures


def test_features_of_a_different_teacher_are_refused(
    model: ColourModel, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "open_galleries", lambda options: [FeatureGallery(Store("def"), Path("features"))])
    Path("features").mkdir()
    Path("features/manifest.json").write_text("{}")
    arguments = ["--model", "m", "--captions", "de=valid.de", "--ids", "valid.ids", "--features", "features"]
    assert cli.main(arguments) == 2
    assert "a teacher with weights def, but the model was trained with abc" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([*COMMAND, "--images", "missing"], "missing: "),
        (
            ["--model", "m", "--captions", "en=valid.en", "--ids", "valid.de", "--images", "photos"],
            "'rot' (en)",
        ),
        ([*COMMAND, "--images", "photos", "--images-root", "photos"], "--images-root goes with --features"),
        ([*COMMAND, "--images", "photos", "--queries", "3"], "give --output too"),
        ([*COMMAND, "--images", "photos", "--features", "f"], "exclude each other; give one of the two"),
        ([*COMMAND, "--images", "photos", "--languages", "de"], "--languages chooses from the languages of benchmarks"),
        ([*COMMAND, "--images", "photos", "--name", "a", "b"], "--name: 2 given for 1 models"),
        ([*COMMAND], "--captions need something to search"),
        (["--model", "m"], "nothing to evaluate on"),
        (["photos", *COMMAND], "omit them beside benchmarks"),
    ],
)
def test_errors_are_one_sentence_and_status_2(
    model: ColourModel, folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], sentence: str
) -> None:
    assert cli.main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("mclip-evaluate: error: ")
    assert captured.err.count("\n") == 1
    assert sentence in captured.err
    assert not captured.out
    assert not model.seen  # refused before anything is encoded


@pytest.mark.parametrize("wrong", [["--protocol", "loose"], ["--batch-size", "0"], ["--quiet"]])
def test_contradictory_and_unknown_options_are_refused(
    folder: Path, capsys: pytest.CaptureFixture[str], wrong: list[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main([*COMMAND, "--images", "photos", *wrong])
    assert stop.value.code == 2
    assert wrong[0] in capsys.readouterr().err
