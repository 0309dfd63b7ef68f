"""``mclip-evaluate BENCHMARK ...``: several models on directories as preprocess/ writes them."""

from __future__ import annotations

import csv
import json
import pickle
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from mclip_fairseq.cli import evaluate as cli
from mclip_fairseq.evaluation.benchmarks.open import Places, open_benchmark
from mclip_fairseq.evaluation.published import read_published
from mclip_fairseq.storage.features import write_features
from tests import hostile

GREYS = {"a": 40, "b": 90, "c": 140, "d": 190}
WORDS = {"en": {name: f"grey {name}" for name in GREYS}, "de": {name: f"grau {name}" for name in GREYS}}


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


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, GreyModel]:
    loaded = {name: GreyModel(name) for name in ("first", "second")}
    monkeypatch.setattr(cli, "load_model", lambda options, number: loaded[options.model[number]])
    return loaded


def write(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """One benchmark of each kind."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for name, grey in GREYS.items():
        Image.new("L", (4, 4), grey).save(tmp_path / "pictures" / f"{name}.png")
    images = [f"{name}\t{name}.png" for name in GREYS]
    ids = [name for name in GREYS for _ in range(2)]
    retrieval = {
        "name": "XTD10",
        "notes": ["Leak: half of it was seen.", "Another note."],
        "splits": {"test": {lang: {"captions": f"test.{lang}", "ids": f"test.{lang}.ids"} for lang in WORDS}},
    }
    for lang, words in WORDS.items():
        write(tmp_path / f"xtd/test.{lang}", [words[name] for name in ids])
        write(tmp_path / f"xtd/test.{lang}.ids", ids)
    write(tmp_path / "xtd/images.tsv", images)
    write(tmp_path / "xtd/test.folds.tsv", [f"{name}\t{number // 2}" for number, name in enumerate(GREYS)])
    write(tmp_path / "xtd/manifest.json", [json.dumps(retrieval)])
    for side, lang in (("deu", "de"), ("eng", "en")):
        write(tmp_path / f"tatoeba/test.deu-eng.{side}", [WORDS[lang][name] for name in GREYS])
    write(tmp_path / "tatoeba/manifest.json", [json.dumps({"name": "Tatoeba", "pairs": {"deu-eng": 4}})])
    scores = ["5\tgrey a\tgrau a", "3\tgrey a\tgrau b", "0.5\tgrey a\tgrau c", "0\tgrey a\tgrau d"]
    write(tmp_path / "sts/stsb.test.de.tsv", scores)
    write(tmp_path / "sts/manifest.json", [json.dumps({"name": "STS", "tables": {"stsb.test.de": 4}})])
    for lang in WORDS:
        write(tmp_path / f"babel/classes.{lang}.tsv", [f"{number}\t{name}" for number, name in ((2, "c"), (0, "a"))])
        write(tmp_path / f"babel/prompts.{lang}", ["grey {}", "a photo of grey {}"])
    write(tmp_path / "babel/labels.tsv", ["a\t0", "b\t1", "c\t2", "d\t2"])
    write(tmp_path / "babel/images.tsv", images)
    write(tmp_path / "babel/manifest.json", [json.dumps({"name": "Babel", "languages": {"en": {}, "de": {}}})])
    return tmp_path


ALL = ["xtd", "tatoeba", "sts", "babel", "--model", "first", "second", "--images-root", "pictures", "--output", "out"]


def report(benchmark: str, model: str) -> Any:
    return json.loads(Path("out", benchmark, model, "report.json").read_text(encoding="utf-8"))


def test_all_kinds_of_benchmarks_and_two_models(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*ALL, "--published"]) == 0
    printed = capsys.readouterr()
    assert "warning: Leak: half of it was seen." in printed.err
    good, bad = report("XTD10", "first"), report("XTD10", "second")
    assert (good["results"]["de"]["t2i_R@1"], bad["results"]["de"]["t2i_R@1"]) == (100, 75)
    assert bad["confidence"]["de"]["t2i_R@1"][0] < 75 < bad["confidence"]["de"]["t2i_R@1"][1]
    assert bad["folds"]["number"] == 2
    # within its fold of two images, d is still taken for the nearer, wrong one
    assert bad["folds"]["results"]["de"]["t2i_R@1"] == 75
    assert bad["folds"]["results"]["de"]["i2t_R@5"] == 100
    assert report("Tatoeba", "first")["results"]["deu"]["accuracy"] == 100
    assert report("Tatoeba", "second")["results"]["deu"]["into"] == 75
    assert report("STS", "first")["results"]["stsb.test.de"]["spearman"] == pytest.approx(100)
    babel = report("Babel", "first")["results"]["de"]
    assert (babel["top1"], babel["classes"], babel["photos"]) == (100, 2, 3)  # b's class has no German name
    rows = list(csv.DictReader(Path("out/comparison.csv").read_text(encoding="utf-8").splitlines()))
    of = {(row["benchmark"], row["part"], row["model"], row["language"], row["metric"]): row for row in rows}
    assert float(of["XTD10", "all images", "second", "de", "t2i_R@1"]["value"]) == 75
    assert of["XTD10", "mean of 2 folds of 2 images", "second", "de", "t2i_R@1"]["protocol"] == "strict, all captions"
    page = Path("out/comparison.html").read_text(encoding="utf-8")
    assert "http" not in page
    assert page.count("<img") == 5 + 3 + 2  # tables; gaps where there is English; ranks of two models
    tables = Path("out/comparison.md").read_text(encoding="utf-8")
    assert "XTD10, all images, mean recall, strict, all captions, beside published numbers" in tables
    # what is published of a single recall only has a table of its own
    assert "XTD10, all images, t2i R@10, strict, all captions, beside published numbers" in tables
    assert "STS, spearman, beside published numbers" in tables
    openclip = next(line for line in tables.splitlines() if line.startswith("| openclip-xlmrl-vith14"))
    assert [cell.strip() for cell in openclip.strip("|").split("|")][-1] == "yes"
    raw = next(line for line in tables.splitlines() if line.startswith("| mclip-xlmrl-vitl14"))
    assert "no: strict, all captions, dot products" in raw


def test_nothing_is_done_twice(models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(ALL) == 0
    calls = models["first"].calls
    (folder / "out/STS/first/report.json").unlink()
    assert cli.main(ALL) == 0
    assert "first, XTD10: out/XTD10/first/report.json is there" in capsys.readouterr().out
    assert models["first"].calls == calls + 2  # both sides of the sentence pairs
    write(folder / "tatoeba/test.deu-eng.deu", ["grau a", "grau b", "grau d", "grau c"])
    assert cli.main(ALL) == 0  # changed data are another benchmark
    assert report("Tatoeba", "first")["results"]["deu"]["accuracy"] == 50
    Image.new("L", (4, 4), GREYS["c"]).save(folder / "pictures" / "a.png")  # and so are changed pictures
    assert cli.main(ALL) == 0
    assert report("XTD10", "first")["results"]["de"]["t2i_R@1"] < 100
    assert report("Babel", "first")["results"]["de"]["top1"] < 100


def test_features_are_kept_by_content(models: dict[str, GreyModel], folder: Path) -> None:
    command = ["xtd", "--model", "first", "--images-root", "pictures", "--cache", "cache"]
    assert cli.main(command) == 0
    assert models["first"].calls == 3
    assert cli.main(command) == 0
    assert models["first"].calls == 3
    Image.new("L", (4, 4), 41).save(folder / "pictures" / "a.png")
    assert cli.main([*command, "--captions-per-image", "first"]) == 0
    assert models["first"].calls == 6  # other pixels, other captions


def test_one_caption_an_image(models: dict[str, GreyModel], folder: Path) -> None:
    assert cli.main([*ALL, "--captions-per-image", "first", "--languages", "de"]) == 2  # not a language of Tatoeba
    command = ["xtd", "--model", "second", "--images-root", "pictures", "--output", "out"]
    assert cli.main([*command, "--captions-per-image", "first", "--languages", "de"]) == 0
    first = report("XTD10", "second")
    assert (first["captions"], list(first["results"])) == ("first", ["de"])
    assert len(np.unique(list(first["results"]["de"].values()))) > 1


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("xtd:valid", "has no split 'valid'; name one of test, as in xtd:test"),
        ("tatoeba:test", "has no splits; give tatoeba alone"),
        ("pictures", "manifest.json: cannot be read"),
        ("empty", "is of no kind that is known"),
    ],
)
def test_benchmarks_that_are_none(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str], source: str, sentence: str
) -> None:
    write(folder / "empty/manifest.json", ["{}"])
    assert cli.main([source, "--model", "first"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error
    assert not models["first"].calls


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a refused run of the first model says: status 2, one line, nothing that a terminal would obey."""
    capsys.readouterr()
    assert cli.main([*arguments, "--model", "first", "--images-root", "pictures"]) == 2
    error = capsys.readouterr().err.removesuffix("\n")
    assert error.isprintable()
    return error


@pytest.mark.parametrize("manifest", hostile.BENCHMARKS)
def test_manifests_that_are_damaged_or_lead_out(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str], manifest: str
) -> None:
    write(folder / "bad/manifest.json", [manifest])
    write(folder / "bad/labels.tsv", ["a\t0"])
    write(folder / "bad/images.tsv", ["a\ta.png"])
    error = refused(capsys, "bad")
    assert any(words in error for words in hostile.BENCHMARKS[manifest].split("|"))
    assert "bad" in error
    assert not models["first"].calls


@pytest.mark.parametrize("what", hostile.BENCHMARK_FILES)
def test_numbers_that_are_none_are_named_before_a_model_is_read(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name, content, words = hostile.BENCHMARK_FILES[what]
    (folder / name).write_text(content)
    error = refused(capsys, name.split("/")[0])
    assert f"{name} line " in error
    assert words in error
    assert not models["first"].calls


def test_names_are_shown_without_what_a_terminal_obeys(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"name": "evil\x1b[31m", "notes": ["Leak\x1b[2J"], "pairs": ["deu-eng"]}
    (folder / "tatoeba/manifest.json").write_text(json.dumps(content))
    assert cli.main(["tatoeba", "--model", "first"]) == 0
    printed = capsys.readouterr()
    assert "evil [31m" in printed.out
    assert "\x1b" not in printed.out + printed.err


def test_features_of_texts_are_no_images(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.ones((len(GREYS), 2), np.float32)
    write_features(folder / "f", list(GREYS), values, model="x", normalized=False, modality="text")
    assert "f: holds features of texts; give features of images" in refused(capsys, "xtd", "--features", "f")


def test_features_of_a_teacher_with_an_odd_hash(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models["first"].identity = {"teacher": {"sha256": "abc"}}
    write_features(folder / "f", list(GREYS), np.ones((len(GREYS), 2), np.float32), model="x", normalized=False)
    hostile.manifest(folder / "f", teacher={"sha256": "\x1b[31mx"})
    arguments = ["--captions", "en=xtd/test.en", "--ids", "xtd/test.en.ids", "--features", "f"]
    assert "a teacher with weights \\x1b[31mx, but" in refused(capsys, *arguments)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", pickle.dumps(hostile.Trap(Path("trap"))), hostile.npy(np.zeros((4, 2), np.int32))),
        *(hostile.npy(np.zeros((3, 2), np.float32)), hostile.npy(np.zeros(4, np.float32))),
        hostile.npy(np.full((4, 2), np.nan, np.float32)),
    ],
)
def test_a_cached_file_that_is_another(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    command = ["tatoeba", "--model", "first", "--cache", "cache"]
    assert cli.main(command) == 0
    file = next(Path("cache").iterdir())
    file.write_bytes(content)
    assert file.name in refused(capsys, "tatoeba", "--cache", "cache")
    assert not Path("trap").exists()


@pytest.mark.parametrize("rest", [{}, {"results": 3}, {"benchmark": "x", "results": {}}])
def test_a_report_of_the_right_key_without_the_rest(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str], rest: dict[str, Any]
) -> None:
    assert cli.main(["tatoeba", "--model", "first", "--output", "out"]) == 0
    file = Path("out/Tatoeba/first/report.json")
    file.write_text(json.dumps({"key": json.loads(file.read_text())["key"]} | rest))
    error = refused(capsys, "tatoeba", "--output", "out")
    assert "report.json: is not a report of mclip-evaluate, so remove it" in error


def again(*arguments: str) -> Any:
    """Evaluate the first model once more; the report."""
    assert cli.main([*arguments, "--model", "first", "--images-root", "pictures", "--output", "out"]) == 0
    name = json.loads(Path(arguments[0], "manifest.json").read_text(encoding="utf-8"))["name"]
    return report(name, "first")


def test_what_numbers_hang_on_is_part_of_the_key(models: dict[str, GreyModel], folder: Path) -> None:
    first, folds = again("babel"), again("xtd")["folds"]
    (folder / "babel/prompts.de").write_text("grau {}\n")
    second = again("babel")
    assert first["key"] != second["key"]
    assert [one["results"]["de"]["prompts"] for one in (first, second)] == [2, 1]
    (folder / "babel/prompts.de").unlink()
    third = again("babel")
    assert third["results"]["de"]["prompts"] == 0
    assert "No prompts in de: bare class names there" in third["notes"][-1]
    assert folds["number"] == 2
    (folder / "xtd/test.folds.tsv").unlink()
    assert "folds" not in again("xtd")


def test_images_of_no_fold_are_no_distractors_within_folds(
    models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`images.tsv` lists every split, the folds those of this one."""
    Image.new("L", (4, 4), 3).save(folder / "pictures" / "other.png")
    with (folder / "xtd/images.tsv").open("a") as file:
        file.write("other\tother.png\n")
    captioned = again("xtd")["folds"]
    everything = again("xtd", "--gallery", "all")
    assert everything["gallery_searched"] == 5
    assert everything["folds"]["results"] == captioned["results"]
    (folder / "xtd/test.folds.tsv").write_text("a\t0\nb\t0\n")
    assert cli.main(["xtd", "--model", "first", "--images-root", "pictures"]) == 2
    assert "XTD10: image 'c' of en is in no fold; make the benchmark again." in capsys.readouterr().err


def test_tables_of_one_split(models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(folder / "sts/stsb.train.de.tsv", ["5\tgrey a\tgrau d", "0\tgrey a\tgrau a"])
    tables = {"stsb.train.de": 2, "stsb.test.de": 4}
    (folder / "sts/manifest.json").write_text(json.dumps({"name": "STS", "tables": tables}))
    assert again("sts")["results"].keys() == {"stsb.test.de"}
    assert cli.main(["sts:train", "sts", "--model", "first", "--output", "out"]) == 0
    assert report("STS_train", "first")["results"].keys() == {"stsb.train.de"}
    assert cli.main(["sts:dev", "--model", "first"]) == 2
    assert "has no split 'dev'; name one of train, test" in capsys.readouterr().err


def test_features_of_the_images_of_one_split(models: dict[str, GreyModel], folder: Path) -> None:
    with (folder / "xtd/images.tsv").open("a") as file:
        file.write("of_train\tof_train.png\n")
    rows, made = np.eye(4, dtype=np.float32), folder / "features"
    write_features(made, list(GREYS), rows, model="x", normalized=True, preprocessing="", modality="image")
    benchmark = open_benchmark("xtd", Places(features=[made]))
    assert [gallery.index.names for gallery in benchmark.galleries] == [list(GREYS)]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--name", "x", "x"], "two models are called 'x'"),
        (["--name", "a b", "a/b"], "two models are called 'a/b'"),
        (["--images-root", "pictures", "pictures", "pictures"], "--images-root: 3 given for 2 benchmarks"),
    ],
)
def test_what_would_fall_together(
    models: dict[str, GreyModel],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    assert cli.main(["xtd", "sts", "--model", "first", "second", "--images-root", "pictures", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_benchmarks_of_one_name(models: dict[str, GreyModel], folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(folder / "tatoeba", folder / "other")
    assert cli.main(["tatoeba", "other", "--model", "first"]) == 2
    assert "two benchmarks are called 'Tatoeba'" in capsys.readouterr().err


def test_pictures_of_each_benchmark(models: dict[str, GreyModel], folder: Path) -> None:
    (folder / "pictures").rename(folder / "elsewhere")
    shutil.copytree(folder / "elsewhere", folder / "here")
    shutil.copytree(folder / "xtd", folder / "two")
    manifest = json.loads((folder / "two/manifest.json").read_text())
    (folder / "two/manifest.json").write_text(json.dumps(manifest | {"name": "two"}))
    command = ["xtd", "two", "sts", "--model", "first", "--images-root", "elsewhere", "here", "-", "--output", "out"]
    assert cli.main(command) == 0
    assert report("XTD10", "first")["results"] == report("two", "first")["results"]


def test_images_are_needed_before_a_model_is_asked(models: dict[str, GreyModel], folder: Path) -> None:
    benchmark = open_benchmark("xtd", Places())
    with pytest.raises(ValueError, match=r"XTD10: needs images: give --images-root, or --features"):
        benchmark.evaluate(models["first"], cli.Settings())  # type: ignore[arg-type]


def test_published_numbers_are_whole() -> None:
    """Mean recall is the mean of the six recalls wherever all are given."""
    checked = 0
    for entry in read_published():
        for metrics in entry.results.values():
            recalls = [value for name, value in metrics.items() if "_R@" in name]
            assert metrics
            assert all(0 < value <= 100 for value in metrics.values())
            if recalls and "mean_recall" in metrics:
                checked += 1
                assert len(recalls) == 6
                assert metrics["mean_recall"] == pytest.approx(sum(recalls) / 6, abs=0.06)
    assert checked > 1000


def test_two_sources_of_the_same_checkpoint_agree() -> None:
    """open_clip's table and Babel-ImageNet's measured this one on XTD10, each with a program of its own."""
    of = {(entry.benchmark, entry.system): entry.results for entry in read_published()}
    ours, theirs = of["XTD10", "xlm-roberta-base-ViT-B-32 laion5b_s13b_b90k"], of["XTD10", "openclip-xlmrb-vitb32"]
    both = ours.keys() & theirs.keys()
    assert len(both) >= 10
    for language in both:
        assert ours[language]["mean_recall"] == pytest.approx(theirs[language]["mean_recall"], abs=0.3)
