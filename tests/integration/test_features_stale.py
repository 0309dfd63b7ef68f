"""`mclip-features` called again: unchanged inputs cost nothing, changed ones are refused."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mclip_fairseq.cli import features
from mclip_fairseq.encoding import images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for number in range(3):
        Image.fromarray(np.full((32, 32, 3), 40 * number, dtype=np.uint8)).save(tmp_path / f"photos/{number}.bmp")
    return tmp_path / "photos"


def run(clip: Path, output: Path, *more: object) -> int:
    line = ["--model", clip, "--output", output, "--workers", 0, "--device", "cpu", *more]
    return features.main(list(map(str, line)))


def edit(picture: Path, same_time: bool = False) -> None:
    """Change the pixels of a picture but not the size of its file."""
    before = picture.stat()
    Image.new("RGB", (32, 32), "red").save(picture)
    assert picture.stat().st_size == before.st_size
    os.utime(picture, ns=(before.st_atime_ns, before.st_mtime_ns + (0 if same_time else 10**9)))


def test_a_changed_caption_is_noticed(clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    captions, output = tmp_path / "captions.txt", tmp_path / "out"
    captions.write_text("a dog\na cat\n")
    assert run(clip, output, "--captions", captions) == 0
    assert run(clip, output, "--captions", captions) == 0
    captions.write_text("a cat\na dog\n")
    assert run(clip, output, "--captions", captions) == 2
    assert f"{output}: was started with a different content of the inputs" in capsys.readouterr().err


@pytest.mark.parametrize("state", ["finished", "partial"])
def test_an_edited_picture_is_noticed(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], state: str
) -> None:
    options = ["--images", photos, "--shard-rows", 1, *(["--machines", 2] if state == "partial" else [])]
    assert run(clip, tmp_path / "out", *options) == 0
    edit(photos / "1.bmp")
    assert run(clip, tmp_path / "out", *options) == 2
    assert "a different content of the inputs" in capsys.readouterr().err


def test_hashes_notice_what_times_hide(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, option in (("times", []), ("hashes", ["--hash-images"])):
        assert run(clip, tmp_path / name, "--images", photos, *option) == 0
    os.utime(photos / "0.bmp")  # a new time with the old content
    assert run(clip, tmp_path / "hashes", "--images", photos, "--hash-images") == 0
    edit(photos / "1.bmp", same_time=True)
    capsys.readouterr()
    assert run(clip, tmp_path / "hashes", "--images", photos, "--hash-images") == 2
    assert "a different content of the inputs" in capsys.readouterr().err


def test_unchanged_pictures_are_not_read_again(
    clip: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(clip, tmp_path / "out", "--images", photos) == 0

    def unexpected(*arguments: object) -> None:
        raise AssertionError(f"reads {arguments}")

    monkeypatch.setattr(images, "load_image", unexpected)
    monkeypatch.setattr(images, "file_sha256", unexpected)
    assert run(clip, tmp_path / "out", "--images", photos) == 0


def test_a_changed_image_processor_is_noticed(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = Path(shutil.copytree(clip, tmp_path / "clip"))
    assert run(model, tmp_path / "out", "--images", photos) == 0
    file = model / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"do_normalize": False}))
    assert run(model, tmp_path / "out", "--images", photos) == 2
    assert "configuration, image processor or tokenizer of the model" in capsys.readouterr().err


def test_features_of_an_earlier_version_have_no_record(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(clip, tmp_path / "out", "--images", photos) == 0
    file = tmp_path / "out/manifest.json"
    manifest = json.loads(file.read_text())
    del manifest["settings"]["inputs_content"], manifest["settings"]["model_settings"]
    file.write_text(json.dumps(manifest))
    assert run(clip, tmp_path / "out", "--images", photos) == 2
    assert "did not record the content of its inputs" in capsys.readouterr().err
