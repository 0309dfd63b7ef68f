"""Directories in checkpoints mean what they meant where they were given, and nothing on any other machine."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fairseq.checkpoint_utils import load_model_ensemble_and_task

from mclip_fairseq import MultilingualCLIP
from mclip_fairseq.export.directory import save_directory
from mclip_fairseq.models.teacher_loading import load_dual_encoder
from mclip_fairseq.resilience import resuming
from mclip_fairseq.storage.checkpoints import load_checkpoint
from mclip_fairseq.storage.errors import UserError
from mclip_fairseq.storage.places import (
    MARK,
    StoredParts,
    hide_places,
    machine_key,
    recall,
    relative_places,
    stored_places,
)
from mclip_fairseq.tasks.caption_files import check_teacher, check_tokenizer
from tests.runs import caption_options

Train = Callable[..., str]
LEGACY = Path(__file__).resolve().parents[1] / "data" / "legacy"


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


@pytest.fixture
def absolute(photos: Path, tiny_corpus: Path, run_train: Train, tmp_path: Path) -> Path:
    """A checkpoint of a training whose options are absolute paths, below a folder with a telling name."""
    home = tmp_path / "secret-home"
    shutil.copytree(photos, home / "parts")
    shutil.copytree(tiny_corpus / "tokenizer", home / "parts" / "tokenizer")
    run_train(
        *(home / "parts/captions", "--task", "trikd", "--langs", "en", "--arch", "mclip_tiny", "--criterion", "trikd"),
        *("--image-features", home / "parts/features", "--teacher", home / "parts/teacher", "--text-text-weight", "0"),
        *("--text-tokenizer", home / "parts/tokenizer", "--tensorboard-logdir", home / "board"),
        *("--optimizer", "sgd", "--lr", "0.1", "--batch-size", "26", "--max-update", "1", "--log-file", home / "log"),
        *("--disable-validation", "--num-workers", "0", "--save-dir", home / "run", "--no-progress-bar"),
    )
    return home / "run" / "checkpoint_last.pt"


def test_a_checkpoint_reveals_no_path_and_chooses_none_elsewhere(
    absolute: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It holds no folder of the machine; without the record its parts must be named, even where they exist."""
    assert b"secret-home" not in absolute.read_bytes()
    image = next((photos / "images").iterdir())
    copied = shutil.copy(absolute, tmp_path / "copied.pt")
    expected = MultilingualCLIP.from_pretrained(copied, device="cpu").encode_image([image])
    save_directory(MultilingualCLIP.from_pretrained(copied, device="cpu").tower, tmp_path / "exported")
    assert not [path for path in (tmp_path / "exported").rglob("*.json") if b"secret-home" in path.read_bytes()]
    (_,), cfg, _ = load_model_ensemble_and_task([str(copied)])  # fairseq's loader finds the data as well
    assert cfg.task.data == str(absolute.parents[1] / "parts/captions")
    parts = absolute.parents[1] / "parts"
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "another-machine"))
    with pytest.raises(UserError, match=r"not written on this machine.* \.\.\./tokenizer .*pass --text-encoder"):
        MultilingualCLIP.from_pretrained(copied, device="cpu")
    model = MultilingualCLIP.from_pretrained(copied, device="cpu", text_encoder=parts / "tokenizer")
    assert model.tower.image_settings() is None
    with pytest.raises(UserError, match=r"not written on this machine.* \.\.\./teacher .*pass --teacher"):
        model.encode_image([image])
    named = {"text_encoder": parts / "tokenizer", "teacher": parts / "teacher"}
    model = MultilingualCLIP.from_pretrained(copied, device="cpu", **named)
    torch.testing.assert_close(model.encode_image([image]), expected)
    with pytest.raises(UserError, match=r"\.\.\./captions"):
        load_model_ensemble_and_task([str(copied)])


def test_forged_places_are_not_read(tmp_path: Path) -> None:
    """Absolute and relative ones in a checkpoint without a mark of this machine, or with an invented one."""
    state, encoder = load_checkpoint(LEGACY / "teacher_learning.pt"), LEGACY / "encoder"
    forged = tmp_path / "run" / "forged.pt"
    forged.parent.mkdir()
    shutil.copytree(encoder, tmp_path / "encoder")
    for mark, tokenizer, beside in (
        ("", str(encoder), {}),
        ("0" * 64, "../encoder", {}),
        ("../" * 20 + "x", "tokenizer", {"text_tokenizer": "../encoder"}),
    ):
        state["cfg"][MARK] = mark
        state["cfg"]["model"] |= {"text_encoder": "", "text_tokenizer": tokenizer}
        torch.save(state | {"extra_state": {"TriKDTask": {"places": beside}}}, forged)
        with pytest.raises(UserError, match="was not written on this machine"):
            MultilingualCLIP.from_pretrained(forged, device="cpu")
    shutil.copytree(encoder, forged.parent / "tokenizer")  # its own folder came with it
    assert MultilingualCLIP.from_pretrained(forged, device="cpu").encode_text("red").isfinite().all()


def test_candidates_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the checkpoint first, then where the training found it; elsewhere only in the checkpoint's own folder."""
    file = tmp_path / "a" / "run" / "checkpoint.pt"
    for name in ("a/recorded", "a/run/own", "a/parts", "absolute"):
        (tmp_path / name).mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a")
    beside, known = {"teacher": "../recorded"}, {"model.teacher": str(tmp_path / "absolute")}
    assert StoredParts(file, known, beside).find("teacher", "parts") == str(tmp_path / "a" / "recorded")
    assert StoredParts(file, known, {}).find("teacher", "parts") == str(tmp_path / "absolute")
    assert StoredParts(file, {"model.teacher": "some/clip"}, {}).find("teacher", "some/clip") == "some/clip"
    assert StoredParts(file, None, {}).find("teacher", ".../own") == str(tmp_path / "a" / "run" / "own")
    (tmp_path / "a" / "run" / "linked").symlink_to(tmp_path / "absolute")
    for stored in ("parts", "../parts", ".", "..", "linked", str(tmp_path / "absolute"), "some/clip"):
        with pytest.raises(UserError, match="was not written on this machine"):
            StoredParts(file, None, beside).find("teacher", stored)
    assert relative_places(None, tmp_path) == {}
    assert stored_places({"Task": {"places": {"teacher": 3, "other": "x"}}, "best": 1.0}) == {}


def test_marks_belong_to_one_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal places give equal marks here and other marks elsewhere; a cache that cannot be written to gives none."""
    cfg: dict[str, Any] = {
        "task": {"data": "/home/me/data", "langs": "en", "save_dir": "/home/me/run"},
        "model": {"teacher": "openai/clip", "text_encoder": "", "layers": 3},
        "checkpoint": {"save_dir": "/home/me/run", "restore_file": "checkpoint_last.pt"},
        "distributed_training": {"distributed_init_method": "tcp://node7:1234", "distributed_world_size": 2},
        "optimizer": None,
    }
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "one"))
    hidden = hide_places(cfg)
    assert not re.search("/home|node7", str(hidden))
    assert cfg["task"]["data"] == "/home/me/data"
    assert hidden["distributed_training"]["distributed_world_size"] == 2
    assert recall(hidden[MARK]) == {"task.data": "/home/me/data", "model.teacher": "openai/clip"}
    assert hide_places(cfg)[MARK] == hidden[MARK]
    assert (tmp_path / "one" / "key").stat().st_mode & 0o777 == 0o600
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "two"))
    assert recall(hidden[MARK]) is None
    assert hide_places(cfg)[MARK] != hidden[MARK]
    assert len(machine_key()) == 32
    (tmp_path / "file").touch()
    monkeypatch.setenv("MCLIP_CACHE", str(tmp_path / "file"))
    assert MARK not in hide_places(cfg)
    assert recall(hidden[MARK]) is None


@pytest.mark.parametrize(
    ("given", "published", "refused"),
    [
        *(("no/tokenizer", False, True), ("no-tokenizer", False, True), ("/no/tokenizer", True, True)),
        *(("./tokenizer", True, True), ("../tokenizer", True, True), ("a/b/tokenizer", True, True)),
        *(("bert-base-multilingual-cased", True, False), ("user/tokenizer", True, False), ("", False, False)),
        (None, False, False),
    ],
)
def test_a_tokenizer_must_exist(given: str | None, published: bool, refused: bool) -> None:
    cfg = Namespace(text_tokenizer=given)
    if refused:
        with pytest.raises(UserError, match=f"^--text-tokenizer {given}: not found; give the directory of the"):
            check_tokenizer(cfg, published)
    else:
        check_tokenizer(cfg, published)


@pytest.mark.parametrize(
    ("given", "refused"), [("no/clip/here", True), ("./clip", True), ("user/clip", False), ("", False), (None, False)]
)
def test_a_teacher_must_exist(given: str | None, refused: bool) -> None:
    """Beside features of its own, training does not read it: only inference would miss it."""
    said = pytest.raises(UserError, match=f"^--teacher {given}: not found; give a directory, or the name of a model")
    with said if refused else contextlib.nullcontext():
        check_teacher(Namespace(teacher=given))


@pytest.mark.parametrize("task", ["trikd", "contrastive_tension"])
def test_a_training_names_a_missing_tokenizer(
    task: str, tiny_corpus: Path, run_train: Callable[..., str], tmp_path: Path
) -> None:
    options = caption_options(tiny_corpus, tmp_path, "--max-update", "1", "--text-tokenizer", tmp_path / "no")
    if task == "contrastive_tension":
        options = [
            *(tiny_corpus / "captions", "--task", task, "--langs", "en", "--criterion", task, "--arch"),
            *("contrastive_tension_tiny", "--text-tokenizer", tmp_path / "no", "--optimizer", "rmsprop"),
            *("--lr", "0.001", "--batch-size", "4", "--max-update", "1", "--save-dir", tmp_path),
        ]
    with pytest.raises(UserError, match=r"--text-tokenizer .*/no: not found"):
        run_train(*options)


@pytest.mark.parametrize("name", ["/no/teacher", "./teacher", "a/b/teacher"])
def test_a_teacher_that_is_a_path_is_not_looked_for_on_the_hub(name: str) -> None:
    with pytest.raises(UserError, match=f"^{name}: not found; give a directory, or the name of a model on the Hub$"):
        load_dual_encoder(name)
