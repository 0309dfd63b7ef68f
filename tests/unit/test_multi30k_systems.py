"""What examples/multi30k8k derives from its data for the systems that it compares, and the table of its runs."""

import gzip
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import feature_pictures
import numpy as np
import prepare
import pytest
import small_clip
import table

from tests.tiny_data import write


def test_a_picture_shows_a_feature_column_by_column() -> None:
    feature = np.zeros(4)
    feature[1], feature[2] = 0.6, -1.0
    pixels = np.asarray(feature_pictures.draw(feature))
    assert pixels.tolist() == [[128, 179], [43, 128]]  # 128 + 0.6 * 2 * 128 / 3


def test_pieces_are_all_letters_and_the_commonest_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(small_clip, "PIECES", 12)
    small_clip.write_vocabulary(tmp_path / "vocab.txt", ["ab b", "b a, b"])
    assert (tmp_path / "vocab.txt").read_text().split() == [*small_clip.SPECIAL, *",ab", *("##,", "##a", "##b"), "ab"]


def test_captions_of_one_photo_stand_beside_those_of_the_next(tmp_path: Path) -> None:
    write(tmp_path / "images" / "valid.ids", ["1", "2"])
    for lang in prepare.LANGS:
        write(tmp_path / "captions" / f"valid.{lang}", [f"{lang} 1", f"{lang} 2"])
    five = "".join(f"{photo}\t{photo}{letter}\n" for photo in "12" for letter in "abc")
    (tmp_path / "captions" / "valid.en5.tsv.gz").write_bytes(gzip.compress(five.encode()))
    prepare.write_similarity(tmp_path, tmp_path)
    folder = tmp_path / "similarity"
    rows = (folder / "captions.valid.cs-en.tsv").read_text().splitlines()
    assert rows[:4] == ["5\tcs 1\t1a", "5\tcs 1\t1b", "0\tcs 1\t2a", "0\tcs 1\t2b"]
    assert json.loads((folder / "manifest.json").read_text())["tables"]["captions.valid.en"] == len(rows) == 8


def test_the_table_has_a_row_for_each_variant_and_stage(tmp_path: Path) -> None:
    for seed, recall in ((1, 70.0), (2, 72.0)):
        retrieval: dict[str, Any] = {
            **{"kind": "retrieval", "benchmark": "captions", "headline": "mean_recall"},
            **{"results": {lang: {"mean_recall": recall} for lang in table.LANGS}},
            "mean_rank_variance": {"variance": {"t2i": 30.0}},
        }
        who: dict[str, Any] = {"kind": "classification", "benchmark": "photos: who", "headline": "top1"}
        who["results"] = {"en": {"top1": 80.0}, "de": {"top1": 60.0}, "fr": {"top1": 70.0}}
        reports = {"valid": retrieval, "classes-valid/who/last": who, "classes-test/who/last": {**who, "results": {}}}
        for stage in ("", "-teach"):
            for place, report in reports.items():
                folder = tmp_path / f"altclip-{seed}" / f"evaluation{stage}" / place
                write(folder / "report.json", [json.dumps(report)])
    rows = table.read_runs(tmp_path)
    assert list(rows) == ["altclip", "altclip, stage 1"]
    assert rows["altclip"][1] == dict.fromkeys(table.LANGS, 72.0) | {"MRV": 30.0, "who en": 80.0, "who others": 65.0}
    last = table.table(rows).splitlines()[-1].split(" | ")
    assert last[:3] == ["| altclip, stage 1", "2", "71.0 ± 1.0"]
    assert last[-1] == f"{table.ABSENT} |"


def test_options_belong_to_a_named_trial(repository_root: Path, tmp_path: Path) -> None:
    """So that no run of a variant has other options than the others."""
    for variables in ({}, {"TRIAL": "structure", "VARIANT": "m-clip"}):
        environment = {**os.environ, "OPTIONS": "--structure-weight 50", **variables}
        command = ["bash", str(repository_root / "examples/multi30k8k/run.sh"), "data", str(tmp_path / "runs")]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
        assert "name the trial, or leave them out" in done.stderr
