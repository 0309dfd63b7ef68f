"""Relative directories in checkpoints mean what they meant where they were given."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.resilience import resuming
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.places import find_part, relative_places, stored_places

Train = Callable[..., str]


@pytest.fixture
def trained(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a training that was started in `home`, with relative options."""
    home = tmp_path / "home"
    shutil.copytree(photos, home / "parts")
    shutil.copytree(tiny_corpus / "tokenizer", home / "parts" / "tokenizer")
    monkeypatch.chdir(home)
    run_train(
        *("parts/captions", "--task", "trikd", "--langs", "en", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--image-features", "parts/features", "--teacher", "parts/teacher", "--text-tokenizer", "parts/tokenizer"),
        *("--text-text-weight", "0", "--optimizer", "sgd", "--lr", "0.1", "--batch-size", "26", "--max-update", "1"),
        *("--disable-validation", "--num-workers", "0", "--save-dir", "runs/one", "--no-progress-bar"),
    )
    return home / "runs" / "one" / "checkpoint_last.pt"


def test_they_are_found_from_anywhere(
    trained: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the working directory has others of the same names, and after all has moved together."""
    state = load_checkpoint(trained)
    places = stored_places(state["extra_state"])
    assert places == {"teacher": "../../parts/teacher", "text_tokenizer": "../../parts/tokenizer"}
    image = next((photos / "images").iterdir())
    expected = MultilingualCLIP.from_pretrained(trained, device="cpu").encode_image([image])
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "parts" / "teacher").mkdir(parents=True)  # an empty directory, which cannot be loaded
    (elsewhere / "parts" / "tokenizer").mkdir()
    monkeypatch.chdir(elsewhere)
    torch.testing.assert_close(MultilingualCLIP.from_pretrained(trained, device="cpu").encode_image([image]), expected)
    moved = shutil.move(trained.parents[2], tmp_path / "moved")
    model = MultilingualCLIP.from_pretrained(Path(moved) / "runs" / "one" / trained.name, device="cpu")
    torch.testing.assert_close(model.encode_image([image]), expected)


@pytest.mark.parametrize(("part", "option"), [("teacher", "--teacher"), ("tokenizer", "--text-encoder")])
def test_a_missing_one_is_named_with_its_option(part: str, option: str, trained: Path, photos: Path) -> None:
    """A directory that is gone is not looked for on the Hub, where its path may be somebody's model."""
    shutil.rmtree(trained.parents[2] / "parts" / part)
    os.chdir(trained.parent)
    image = next((photos / "images").iterdir())
    with pytest.raises(UserError, match=rf"parts/{part} is not here; pass {option} \(in Python t.*="):
        MultilingualCLIP.from_pretrained(trained, device="cpu").encode_image([image])


def test_loaders_of_fairseq_find_them_as_well(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpus = trained.parents[2] / "parts"
    pixels = {"data": str(corpus / "captions"), "image_features": "", "image_root": str(corpus / "images")}
    (model,), _, _ = load_model_ensemble_and_task([str(trained)], arg_overrides=pixels)
    assert model.image_transform is not None
    monkeypatch.setattr(resuming, "point_to_parts", lambda *arguments: None)
    with pytest.raises(UserError, match="parts/teacher"):  # the negative control
        load_model_ensemble_and_task([str(trained)], arg_overrides=pixels)


def test_candidates_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded, beside the checkpoint, in the working directory; an absolute path first."""
    file = tmp_path / "a" / "run" / "checkpoint.pt"
    for name in ("a/recorded", "a/parts", "work/parts", "absolute"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    places = {"teacher": "../recorded"}
    assert find_part(file, "teacher", "parts", places) == tmp_path / "a" / "recorded"
    assert find_part(file, "teacher", "parts", {}) == tmp_path / "a" / "parts"
    assert find_part(file, "teacher", str(tmp_path / "absolute"), places) == tmp_path / "absolute"
    shutil.rmtree(tmp_path / "a" / "parts")
    assert find_part(file, "teacher", "parts", {}) == Path("parts")
    assert relative_places(None, tmp_path) == {}
    assert stored_places({"Task": {"places": {"teacher": 3, "other": "x"}}, "best": 1.0}) == {}
