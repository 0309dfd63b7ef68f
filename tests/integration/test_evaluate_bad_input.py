"""`mclip-evaluate BENCHMARK ...` refuses damaged files and contradictory calls in one sentence."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mclip_fairseq.cli import evaluate as cli
from mclip_fairseq.evaluation.benchmarks.open import Places, open_benchmark
from mclip_fairseq.storage.features import write_features
from tests import hostile
from tests.grey_benchmarks import GREYS, GreyModel, refused, write


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("xtd:valid", "has no split 'valid'; name one of test, as in xtd:test"),
        ("tatoeba:test", "the benchmark has no splits; give tatoeba alone"),
        ("pictures", "manifest.json: cannot be read"),
        ("empty", "unknown kind of benchmark; make the benchmark again"),
    ],
)
def test_sources_that_are_not_benchmarks(
    grey_models: dict[str, GreyModel],
    benchmark_folder: Path,
    capsys: pytest.CaptureFixture[str],
    source: str,
    sentence: str,
) -> None:
    write(benchmark_folder / "empty/manifest.json", ["{}"])
    assert cli.main([source, "--model", "first"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert sentence in error
    assert not grey_models["first"].calls


@pytest.mark.parametrize("manifest", hostile.BENCHMARKS)
def test_manifests_that_are_damaged_or_lead_out(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str], manifest: str
) -> None:
    write(benchmark_folder / "bad/manifest.json", [manifest])
    write(benchmark_folder / "bad/labels.tsv", ["a\t0"])
    write(benchmark_folder / "bad/images.tsv", ["a\ta.png"])
    error = refused(capsys, "bad")
    assert any(words in error for words in hostile.BENCHMARKS[manifest].split("|"))
    assert "bad" in error
    assert not grey_models["first"].calls


@pytest.mark.parametrize("what", hostile.BENCHMARK_FILES)
def test_values_that_are_not_numbers_are_named_before_a_model_is_read(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    name, content, words = hostile.BENCHMARK_FILES[what]
    (benchmark_folder / name).write_text(content)
    error = refused(capsys, name.split("/")[0])
    assert f"{name}, line " in error
    assert words in error
    assert not grey_models["first"].calls


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (("--output",), "is a file; give a directory"),
        (("--cache",), "is a file; give a directory"),
        (("--output", "out", "--font"), "not found; give a font file"),
    ],
)
def test_where_results_go_is_looked_at_before_a_model_is_asked(
    options: tuple[str, ...],
    sentence: str,
    grey_models: dict[str, GreyModel],
    benchmark_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").touch()
    place = str(tmp_path / "file/below")
    error = refused(capsys, "xtd", *options, place)
    assert f"{options[-1]} {place}: " in error
    assert error.endswith(sentence)
    assert not grey_models["first"].calls


def test_features_of_texts_are_not_images(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.ones((len(GREYS), 2), np.float32)
    write_features(benchmark_folder / "f", list(GREYS), values, model="x", normalized=False, modality="text")
    assert "f: holds features of texts; give features of images" in refused(capsys, "xtd", "--features", "f")


def test_features_of_a_teacher_with_an_odd_hash(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    grey_models["first"].identity = {"teacher": {"sha256": "abc"}}
    write_features(
        benchmark_folder / "f", list(GREYS), np.ones((len(GREYS), 2), np.float32), model="x", normalized=False
    )
    hostile.manifest(benchmark_folder / "f", teacher={"sha256": "\x1b[31mx"})
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
def test_a_cached_file_with_other_content(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    command = ["tatoeba", "--model", "first", "--cache", "cache"]
    assert cli.main(command) == 0
    file = next(Path("cache").iterdir())
    file.write_bytes(content)
    assert file.name in refused(capsys, "tatoeba", "--cache", "cache")
    assert not Path("trap").exists()


@pytest.mark.parametrize("fields", [{}, {"results": 3}, {"benchmark": "x", "results": {}}])
def test_a_report_with_the_right_key_and_wrong_fields(
    grey_models: dict[str, GreyModel],
    benchmark_folder: Path,
    capsys: pytest.CaptureFixture[str],
    fields: dict[str, Any],
) -> None:
    assert cli.main(["tatoeba", "--model", "first", "--output", "out"]) == 0
    file = Path("out/Tatoeba/first/report.json")
    file.write_text(json.dumps({"key": json.loads(file.read_text())["key"]} | fields))
    error = refused(capsys, "tatoeba", "--output", "out")
    assert "report.json: " in error
    assert "; remove it to evaluate again" in error


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--name", "x", "x"], "two models are called 'x'"),
        (["--name", "a b", "a/b"], "two models are called 'a/b'"),
        (["--images-root", "pictures", "pictures", "pictures"], "--images-root: 3 given for 2 benchmarks"),
    ],
)
def test_reports_that_would_share_a_folder(
    grey_models: dict[str, GreyModel],
    benchmark_folder: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    sentence: str,
) -> None:
    assert cli.main(["xtd", "sts", "--model", "first", "second", "--images-root", "pictures", *arguments]) == 2
    assert sentence in capsys.readouterr().err


def test_benchmarks_of_the_same_name(
    grey_models: dict[str, GreyModel], benchmark_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(benchmark_folder / "tatoeba", benchmark_folder / "other")
    assert cli.main(["tatoeba", "other", "--model", "first"]) == 2
    assert "two benchmarks are called 'Tatoeba'" in capsys.readouterr().err


def test_images_are_needed_before_a_model_is_asked(grey_models: dict[str, GreyModel], benchmark_folder: Path) -> None:
    benchmark = open_benchmark("xtd", Places())
    with pytest.raises(ValueError, match=r"XTD10: needs images; give --images-root, or --features"):
        benchmark.evaluate(grey_models["first"], cli.Settings())  # type: ignore[arg-type]
