"""Benchmarks of four grey pictures, as the scripts of preprocess/ write them, and models that know their brightness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from mclip_fairseq.cli import evaluate as cli

GREYS = {"a": 40, "b": 90, "c": 140, "d": 190}
WORDS = {"en": {name: f"grey {name}" for name in GREYS}, "de": {name: f"grau {name}" for name in GREYS}}
ALL = ["xtd", "tatoeba", "sts", "babel", "--model", "first", "second", "--images-root", "pictures", "--output", "out"]


class GreyModel:
    """Knows how bright a word means an image to be; the second model takes German d for a."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.fingerprint = name
        self.identity: dict[str, Any] = {}
        self.calls = 0

    def encode_text(self, texts: Sequence[str], batch_size: int = 1, normalize: bool = False) -> Tensor:
        self.calls += 1
        wrong = {"grau d": "a"} if self.name == "second" else {}
        return self.features([GREYS[wrong.get(text, text[-1])] for text in texts])

    def encode_image(self, images: Sequence[Path], batch_size: int = 1, normalize: bool = False) -> Tensor:
        self.calls += 1
        values = []
        for path in images:
            with Image.open(path) as picture:
                values.append(picture.getpixel((0, 0)))
        return self.features(values)

    @staticmethod
    def features(values: Any) -> Tensor:
        angle = torch.tensor(values, dtype=torch.float32) / 100
        return torch.stack([angle.cos(), angle.sin()], dim=1)


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


def write_benchmarks(folder: Path) -> None:
    """One benchmark of each kind, and `pictures/`."""
    (folder / "pictures").mkdir()
    for name, grey in GREYS.items():
        Image.new("L", (4, 4), grey).save(folder / "pictures" / f"{name}.png")
    images = [f"{name}\t{name}.png" for name in GREYS]
    ids = [name for name in GREYS for _ in range(2)]
    retrieval = {
        "name": "XTD10",
        "notes": ["Leak: half of it was seen.", "Another note."],
        "splits": {"test": {lang: {"captions": f"test.{lang}", "ids": f"test.{lang}.ids"} for lang in WORDS}},
    }
    for lang, words in WORDS.items():
        write(folder / f"xtd/test.{lang}", [words[name] for name in ids])
        write(folder / f"xtd/test.{lang}.ids", ids)
    write(folder / "xtd/images.tsv", images)
    write(folder / "xtd/test.folds.tsv", [f"{name}\t{number // 2}" for number, name in enumerate(GREYS)])
    write(folder / "xtd/manifest.json", [json.dumps(retrieval)])
    for side, lang in (("deu", "de"), ("eng", "en")):
        write(folder / f"tatoeba/test.deu-eng.{side}", [WORDS[lang][name] for name in GREYS])
    write(folder / "tatoeba/manifest.json", [json.dumps({"name": "Tatoeba", "pairs": {"deu-eng": 4}})])
    scores = ["5\tgrey a\tgrau a", "3\tgrey a\tgrau b", "0.5\tgrey a\tgrau c", "0\tgrey a\tgrau d"]
    write(folder / "sts/stsb.test.de.tsv", scores)
    write(folder / "sts/manifest.json", [json.dumps({"name": "STS", "tables": {"stsb.test.de": 4}})])
    for lang in WORDS:
        write(folder / f"babel/classes.{lang}.tsv", [f"{number}\t{name}" for number, name in ((2, "c"), (0, "a"))])
        write(folder / f"babel/prompts.{lang}", ["grey {}", "a photo of grey {}"])
    write(folder / "babel/labels.tsv", ["a\t0", "b\t1", "c\t2", "d\t2"])
    write(folder / "babel/images.tsv", images)
    write(folder / "babel/manifest.json", [json.dumps({"name": "Babel", "languages": {"en": {}, "de": {}}})])


def report(benchmark: str, model: str) -> Any:
    """The report of a model on a benchmark, in `out/`."""
    return json.loads(Path("out", benchmark, model, "report.json").read_text(encoding="utf-8"))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused run of the first model says: status 2, one line, no control characters."""
    capsys.readouterr()
    assert cli.main([*arguments, "--model", "first", "--images-root", "pictures"]) == 2
    error = capsys.readouterr().err.removesuffix("\n")
    assert error.isprintable()
    return error


def again(*arguments: str) -> Any:
    """Evaluate the first model once more; the report."""
    assert cli.main([*arguments, "--model", "first", "--images-root", "pictures", "--output", "out"]) == 0
    name = json.loads(Path(arguments[0], "manifest.json").read_text(encoding="utf-8"))["name"]
    return report(name, "first")
