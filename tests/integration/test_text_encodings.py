"""VizWiz's captions, and the text encodings of several sets: joined, encoded, described, and read by id."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest

from mclip_fairseq.cli.features import main as features
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.features import FeatureStore
from tests.downloads import FREE, coco_split_file, lines, manifest, refuses, touch, works, write_json
from tests.integration.test_recipes import commands, recipe
from tests.tiny_models import tiny_clip_directory


def vizwiz(path: Path, captions: list[tuple[int, str, bool, bool]]) -> Path:
    """An annotation file: image, caption, whether it is canned, whether it was rejected."""
    images = sorted({image for image, *_ in captions})
    return write_json(
        path,
        {
            "info": {"description": "VizWiz"},
            "images": [
                {"file_name": f"VizWiz_{path.stem}_{n:08d}.jpg", "id": n, "text_detected": True} for n in images
            ],
            "annotations": [
                {"id": number, "image_id": image, "caption": text, "is_precanned": canned, "is_rejected": rejected}
                for number, (image, text, canned, rejected) in enumerate(captions)
            ],
        },
    )


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Both annotation files."""
    train = [
        (0, "A mug on a\ntable.", False, False),
        (0, "Quality issues are too severe to recognize visual content.", True, True),
        (3, "a grey cat", False, False),
        (3, "buy this", False, True),
    ]
    return [
        vizwiz(tmp_path / "train.json", train),
        vizwiz(tmp_path / "val.json", [(7, "a red can of soup", False, False)]),
    ]


def test_canned_and_rejected_captions_are_left_out_and_counted(
    files: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["train/VizWiz_train_00000000.jpg", "VizWiz_train_00000003.jpg", "val/VizWiz_val_00000007.jpg"]
    images, out = touch(tmp_path / "images", names), tmp_path / "out"
    works("vizwiz", "--annotations", *files, "--images", images, "--output", out)
    assert lines(out / "train.en") == ["A mug on a table.", "a grey cat"]
    assert lines(out / "train.en.ids")[1] == "VizWiz_train_00000003.jpg\ttrain/1"
    assert lines(out / "images.tsv")[0] == f"VizWiz_train_00000000.jpg\t{names[0]}"
    assert lines(out / "texts.en.tsv")[-1] == "valid/0\ta red can of soup"
    kept = tmp_path / "kept"
    works("vizwiz", "--annotations", *files, "--canned", "keep", "--output", kept, *FREE)
    assert len(lines(kept / "train.en")) == 4
    assert manifest(kept)["name"] == "VizWiz-Captions"
    message = refuses("vizwiz", "--annotations", *files, "--canned", "keep", "--output", tmp_path / "counted")
    assert "train.en: has 4 captions, but 117155 were published" in message


def test_files_of_another_shape_are_refused(files: list[Path], tmp_path: Path) -> None:
    other = files[0].rename(tmp_path / "annotations.json")
    assert "is not one of train.json, val.json" in refuses("vizwiz", "--annotations", other, "--output", tmp_path / "o")
    data = {"images": [], "annotations": [{"id": 1, "image_id": 5, "caption": "a"}]}
    stray = write_json(tmp_path / "train.json", data)
    message = refuses("vizwiz", "--annotations", stray, "--output", tmp_path / "o")
    assert "annotation 1: names image 5, which is not among the images" in message


@pytest.fixture
def sets(files: list[Path], tmp_path: Path) -> list[str]:
    """Two sets as the scripts write them, NAME=DIR."""
    (tmp_path / "coco").mkdir()
    split_file = coco_split_file(tmp_path / "coco")
    works("coco", "--karpathy", split_file, "--output", tmp_path / "sets" / "coco", *FREE)
    works("vizwiz", "--annotations", *files, "--output", tmp_path / "sets" / "vizwiz", *FREE)
    return [f"{name}={tmp_path / 'sets' / name}" for name in ("coco", "vizwiz")]


def test_joined_captions_are_encoded_described_and_read_by_id(
    sets: list[str], repository_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = repository_root / "examples" / "text_encodings" / "encodings.py"
    specification: Any = importlib.util.spec_from_file_location("encodings", file)
    encodings = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(encodings)
    out, teacher = tmp_path / "out", tiny_clip_directory(tmp_path / "teacher")
    assert encodings.main(["join", *sets, "--output", str(out)]) == 0
    command = ["--model", teacher, "--captions", out / "captions.tsv", "--output", out / "encodings", "--device", "cpu"]
    assert features([*map(str, command), "--store-dtype", "float32"]) == 0
    describing = ["describe", str(out / "encodings"), "--sources", str(out / "sources.json")]
    assert encodings.main(describing) == 0
    store = FeatureStore.open(out / "encodings")
    assert (store.ids[0], store.ids[-1]) == ("coco/train/0", "vizwiz/valid/0")
    model = DualEncoderTeacher.from_pretrained(teacher)
    expected = model.encode_text(**model.tokenize(["a grey cat"])).numpy()
    assert abs(store.take(store.rows(["vizwiz/train/1"])) - expected).max() < 1e-5
    readme = (out / "encodings" / "README.md").read_text(encoding="utf-8")
    assert "| vizwiz | VizWiz-Captions | 3 | `vizwiz/SPLIT/NUMBER` |" in readme
    assert f"{len(store)} English captions as vectors of 16 numbers" in readme
    (out / "sources.json").write_text(json.dumps({"coco": {"name": "MSCOCO", "captions": 4}}), encoding="utf-8")
    assert encodings.main(describing) == 2
    assert "which are not those of" in capsys.readouterr().err
    assert encodings.main(["join", sets[0], sets[0], "--output", str(out)]) == 2
    assert "with names of letters and digits that differ" in capsys.readouterr().err


@pytest.mark.slow
def test_the_recipe_runs_and_no_stage_twice(sets: list[str], repository_root: Path, tmp_path: Path) -> None:
    places = {"SETS": " ".join(sets), "TEACHER": tiny_clip_directory(tmp_path / "teacher"), "OUT": tmp_path / "out"}
    recipe(repository_root, "text_encodings", "--tiny", cwd=tmp_path, DTYPE="float32", **places)
    assert (tmp_path / "out" / "encodings" / "README.md").is_file()
    again = recipe(repository_root, "text_encodings", "--tiny", cwd=tmp_path, DTYPE="float32", **places)
    assert "captions.tsv exists" in again


def test_published_settings_are_printed(repository_root: Path, tmp_path: Path) -> None:
    stages = commands(recipe(repository_root, "text_encodings", "--dry-run", cwd=tmp_path))
    assert list(stages) == ["join", "features", "describe"]
    assert "cc3m=data/sets/cc3m" in stages["join"]
    printed = recipe(repository_root, "text_encodings", "--dry-run", "--gpus", "2", "features", cwd=tmp_path)
    assert "--machines 2 --machine 1 --device cuda:1" in printed
    assert not any(tmp_path.iterdir())
