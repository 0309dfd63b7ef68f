"""`mclip-evaluate BENCHMARK ...`: several models on directories as preprocess/ writes them."""

from __future__ import annotations

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.cli import evaluate as cli
from mclip_fairseq.evaluation.benchmarks.open import Places, open_benchmark
from mclip_fairseq.storage.features import write_features
from tests.grey_benchmarks import ALL, GREYS, GreyModel, again, report, write


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures are empty files: drawing takes most of the time of a run, and other tests look at them."""
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda figure, stream, **options: None)


def test_all_kinds_of_benchmarks_and_two_models(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
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
    # systems with a single published recall have a table of their own
    assert "XTD10, all images, t2i R@10, strict, all captions, beside published numbers" in tables
    assert "STS, spearman, beside published numbers" not in tables  # only English was published
    openclip = next(line for line in tables.splitlines() if line.startswith("| openclip-xlmrl-vith14"))
    assert openclip.split("|")[1].split() == ["openclip-xlmrl-vith14"]
    raw = next(line for line in tables.splitlines() if line.startswith("| mclip-xlmrl-vitl14"))
    mark = raw.split("|")[1].split()[-1]
    assert mark in "¹²³"
    assert re.search(rf"^{mark} Another protocol: .*dot products", tables, re.MULTILINE), tables


@pytest.mark.usefixtures("undrawn")
def test_nothing_is_done_twice(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(ALL) == 0
    calls = grey_models["first"].calls
    (benchmark_folder / "out/STS/first/report.json").unlink()
    assert cli.main(ALL) == 0
    assert "first, XTD10: out/XTD10/first/report.json is up to date" in capsys.readouterr().out
    assert grey_models["first"].calls == calls + 2  # both sides of the sentence pairs
    write(benchmark_folder / "tatoeba/test.deu-eng.deu", ["grau a", "grau b", "grau d", "grau c"])
    assert cli.main(ALL) == 0  # changed data are a different benchmark
    assert report("Tatoeba", "first")["results"]["deu"]["accuracy"] == 50
    Image.new("L", (4, 4), GREYS["c"]).save(benchmark_folder / "pictures" / "a.png")  # and so are changed pictures
    assert cli.main(ALL) == 0
    assert report("XTD10", "first")["results"]["de"]["t2i_R@1"] < 100
    assert report("Babel", "first")["results"]["de"]["top1"] < 100
    picture = benchmark_folder / "out/XTD10/first/recall.png"
    picture.unlink()
    assert cli.main(ALL) == 0  # what is missing is written again
    assert picture.exists()


@pytest.mark.usefixtures("undrawn")
def test_hashes_notice_what_size_and_time_hide(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["xtd", "--model", "first", "--images-root", "pictures", "--output"]
    picture = benchmark_folder / "pictures" / "a.png"
    Image.new("L", (4, 4), GREYS["a"]).save(picture, compress_level=0)
    before = picture.stat()
    options = {"times": ["times"], "hashes": ["hashes", "--hash-images"]}
    for more in options.values():
        assert cli.main([*command, *more]) == 0
    Image.new("L", (4, 4), GREYS["c"]).save(picture, compress_level=0)
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert picture.stat().st_size == before.st_size
    for name, more in options.items():
        capsys.readouterr()
        assert cli.main([*command, *more]) == 0
        assert ("is up to date" in capsys.readouterr().out) == (name == "times")
    os.utime(picture)  # a new time with the old content
    for name, more in options.items():
        assert cli.main([*command, *more]) == 0
        assert ("is up to date" in capsys.readouterr().out) == (name == "hashes")
    assert cli.main(["xtd", "--model", "first", "--images-root", "pictures", "--hash-images"]) == 2
    assert "--hash-images compares images with those of a report; give --output" in capsys.readouterr().err


def test_features_are_kept_by_content(grey_models: dict[str, GreyModel], benchmark_folder: Path) -> None:
    command = ["xtd", "--model", "first", "--images-root", "pictures", "--cache", "cache"]
    assert cli.main(command) == 0
    assert grey_models["first"].calls == 3
    assert cli.main(command) == 0
    assert grey_models["first"].calls == 3
    Image.new("L", (4, 4), 41).save(benchmark_folder / "pictures" / "a.png")
    assert cli.main([*command, "--captions-per-image", "first"]) == 0
    assert grey_models["first"].calls == 6  # other pixels, other captions


@pytest.mark.usefixtures("undrawn")
def test_one_caption_per_image(grey_models: dict[str, GreyModel], benchmark_folder: Path) -> None:
    assert cli.main([*ALL, "--captions-per-image", "first", "--languages", "de"]) == 2  # not a language of Tatoeba
    command = ["xtd", "--model", "second", "--images-root", "pictures", "--output", "out"]
    assert cli.main([*command, "--captions-per-image", "first", "--languages", "de"]) == 0
    first = report("XTD10", "second")
    assert (first["captions"], list(first["results"])) == ("first", ["de"])
    assert len(np.unique(list(first["results"]["de"].values()))) > 1


@pytest.mark.usefixtures("undrawn")
def test_what_numbers_depend_on_is_part_of_the_key(grey_models: dict[str, GreyModel], benchmark_folder: Path) -> None:
    first, folds = again("babel"), again("xtd")["folds"]
    (benchmark_folder / "babel/prompts.de").write_text("grau {}\n")
    second = again("babel")
    assert first["key"] != second["key"]
    assert [one["results"]["de"]["prompts"] for one in (first, second)] == [2, 1]
    (benchmark_folder / "babel/prompts.de").unlink()
    third = again("babel")
    assert third["results"]["de"]["prompts"] == 0
    assert "No prompts in de: bare class names are used" in third["notes"][-1]
    assert folds["number"] == 2
    (benchmark_folder / "xtd/test.folds.tsv").unlink()
    assert "folds" not in again("xtd")


@pytest.mark.usefixtures("undrawn")
def test_images_without_a_fold_are_not_distractors_within_folds(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`images.tsv` lists every split, the folds those of this one."""
    Image.new("L", (4, 4), 3).save(benchmark_folder / "pictures" / "other.png")
    with (benchmark_folder / "xtd/images.tsv").open("a") as file:
        file.write("other\tother.png\n")
    captioned = again("xtd")["folds"]
    everything = again("xtd", "--gallery", "all")
    assert everything["gallery_searched"] == 5
    assert everything["folds"]["results"] == captioned["results"]
    (benchmark_folder / "xtd/test.folds.tsv").write_text("a\t0\nb\t0\n")
    assert cli.main(["xtd", "--model", "first", "--images-root", "pictures"]) == 2
    assert "XTD10: image 'c' of en is in no fold; make the benchmark again" in capsys.readouterr().err


@pytest.mark.usefixtures("undrawn")
def test_tables_of_one_split(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(benchmark_folder / "sts/stsb.train.de.tsv", ["5\tgrey a\tgrau d", "0\tgrey a\tgrau a"])
    tables = {"stsb.train.de": 2, "stsb.test.de": 4}
    (benchmark_folder / "sts/manifest.json").write_text(json.dumps({"name": "STS", "tables": tables}))
    assert again("sts")["results"].keys() == {"stsb.test.de"}
    assert cli.main(["sts:train", "sts", "--model", "first", "--output", "out"]) == 0
    assert report("STS_train", "first")["results"].keys() == {"stsb.train.de"}
    assert cli.main(["sts:dev", "--model", "first"]) == 2
    assert "has no split 'dev'; name one of train, test" in capsys.readouterr().err


def test_features_of_the_images_of_one_split(grey_models: dict[str, GreyModel], benchmark_folder: Path) -> None:
    with (benchmark_folder / "xtd/images.tsv").open("a") as file:
        file.write("of_train\tof_train.png\n")
    rows, made = np.eye(4, dtype=np.float32), benchmark_folder / "features"
    write_features(made, list(GREYS), rows, model="x", normalized=True, preprocessing="", modality="image")
    benchmark = open_benchmark("xtd", Places(features=[made]))
    assert [gallery.index.names for gallery in benchmark.galleries] == [list(GREYS)]


@pytest.mark.usefixtures("undrawn")
def test_pictures_of_each_benchmark(grey_models: dict[str, GreyModel], benchmark_folder: Path) -> None:
    (benchmark_folder / "pictures").rename(benchmark_folder / "elsewhere")
    shutil.copytree(benchmark_folder / "elsewhere", benchmark_folder / "here")
    shutil.copytree(benchmark_folder / "xtd", benchmark_folder / "two")
    manifest = json.loads((benchmark_folder / "two/manifest.json").read_text())
    (benchmark_folder / "two/manifest.json").write_text(json.dumps(manifest | {"name": "two"}))
    command = ["xtd", "two", "sts", "--model", "first", "--images-root", "elsewhere", "here", "-", "--output", "out"]
    assert cli.main(command) == 0
    assert report("XTD10", "first")["results"] == report("two", "first")["results"]


def test_control_characters_in_names_are_not_printed(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = {"name": "evil\x1b[31m", "notes": ["Leak\x1b[2J"], "pairs": ["deu-eng"]}
    (benchmark_folder / "tatoeba/manifest.json").write_text(json.dumps(content))
    assert cli.main(["tatoeba", "--model", "first"]) == 0
    printed = capsys.readouterr()
    assert "evil [31m" in printed.out
    assert "\x1b" not in printed.out + printed.err
