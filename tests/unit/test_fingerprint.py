"""A fingerprint changes with everything that vectors depend on, and with nothing else."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from mclip_fairseq.inference import MultilingualCLIP
from mclip_fairseq.storage.fingerprints import HALF, NO_IMAGE_TOWER, same_vectors

EXPORTED = Path(__file__).resolve().parents[1] / "data/legacy/exported"


def fingerprint(path: Path, dtype: torch.dtype | None = None) -> str:
    return MultilingualCLIP.from_pretrained(path, device="cpu", dtype=dtype).fingerprint


def edit(file: Path, *keys: str, value: object) -> None:
    """Change one value of a JSON file."""
    content = json.loads(file.read_text())
    section = content
    for key in keys[:-1]:
        section = section[key]
    assert section.get(keys[-1]) != value
    section[keys[-1]] = value
    file.write_text(json.dumps(content))


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    return Path(shutil.copytree(EXPORTED, tmp_path / "model"))


def test_copying_moving_and_loading_change_nothing(exported: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(shutil.copytree(exported, tmp_path / "copy"), tmp_path / "elsewhere"))
    model = MultilingualCLIP.from_pretrained(moved, device="cpu")
    before = model.fingerprint
    assert before == fingerprint(exported)
    model.transform, model.encode_text(["a dog"])  # the teacher is loaded, the tokenizer used
    assert model.fingerprint == before


@pytest.mark.parametrize(
    ("side", "file", "keys", "value"),
    [
        ("text", "config.json", ("max_tokens",), 7),
        ("text", "config.json", ("model", "projector_attention_heads"), 1),
        ("text", "config.json", ("model", "encoder_attention_heads"), 1),
        ("text", "config.json", ("model", "pooling"), "mean"),
        ("image", "teacher/config.json", ("vision_config", "num_attention_heads"), 1),
        ("image", "teacher/config.json", ("vision_config", "hidden_act"), "gelu"),
        ("image", "teacher/config.json", ("vision_config", "layer_norm_eps"), 0.1),
        ("image", "teacher/preprocessor_config.json", ("image_mean",), [0.1, 0.2, 0.3]),
        ("image", "teacher/preprocessor_config.json", ("image_std",), [0.1, 0.2, 0.3]),
        ("image", "teacher/preprocessor_config.json", ("resample",), 0),
        ("image", "teacher/preprocessor_config.json", ("do_center_crop",), False),
        ("image", "teacher/preprocessor_config.json", ("do_normalize",), False),
        ("image", "teacher/preprocessor_config.json", ("size",), {"shortest_edge": 40}),
    ],
)
def test_every_setting_counts(exported: Path, side: str, file: str, keys: tuple[str, ...], value: object) -> None:
    before = fingerprint(exported)
    edit(exported / file, *keys, value=value)
    after = fingerprint(exported)
    assert not same_vectors(before, after)
    assert (before[:HALF] == after[:HALF]) == (side == "image")


@pytest.mark.parametrize(
    ("keys", "value"),
    [
        (("image_mean",), [0.1, 0.2, 0.3]),
        (("resample",), 0),
    ],
)
def test_a_model_of_transformers_counts_its_settings(exported: Path, keys: tuple[str, ...], value: object) -> None:
    teacher = exported / "teacher"
    before = fingerprint(teacher)
    edit(teacher / "preprocessor_config.json", *keys, value=value)
    assert not same_vectors(fingerprint(teacher), before)


def test_the_heads_and_the_tokenizer_of_a_model_of_transformers_count(exported: Path) -> None:
    teacher = exported / "teacher"
    before = fingerprint(teacher)
    edit(teacher / "config.json", "text_config", "num_attention_heads", value=1)
    heads = fingerprint(teacher)
    assert heads[:HALF] != before[:HALF]
    vocabulary = json.loads((teacher / "tokenizer.json").read_text())["model"]["vocab"]
    first, second, *_ = vocabulary
    swapped = vocabulary | {first: vocabulary[second], second: vocabulary[first]}
    edit(teacher / "tokenizer.json", "model", "vocab", value=swapped)
    assert fingerprint(teacher)[:HALF] != heads[:HALF]


def test_the_name_of_a_directory_does_not_count(exported: Path) -> None:
    shutil.copytree(exported / "teacher", exported / "another-name")
    assert fingerprint(exported / "teacher") == fingerprint(exported / "another-name")


def test_weights_type_and_tokenizer_files_count(exported: Path) -> None:
    model = MultilingualCLIP.from_pretrained(exported, device="cpu")
    before = model.fingerprint
    assert fingerprint(exported, torch.bfloat16)[:HALF] != before[:HALF]
    lines = (exported / "dict.txt").read_text().splitlines()
    (exported / "dict.txt").write_text("\n".join([lines[1], lines[0], *lines[2:]]) + "\n")
    assert model.fingerprint[:HALF] != before[:HALF]
    model.tower.module.c_projector.weight.data[0, 0] += 1
    weights = model.fingerprint
    model.tower.module.c_projector.weight.data[0, 0] += 1
    assert model.fingerprint[:HALF] != weights[:HALF]


def test_without_the_image_tower_texts_are_still_comparable(exported: Path) -> None:
    before = fingerprint(exported)
    shutil.rmtree(exported / "teacher")
    alone = fingerprint(exported)
    assert alone == before[:HALF] + NO_IMAGE_TOWER
    assert same_vectors(before, alone)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("a" * 64, "a" * 64, True),
        ("a" * 64, "a" * 32 + "0" * 32, True),
        ("a" * 64, "a" * 32 + "b" * 32, False),
        ("a" * 64, "b" * 32 + "0" * 32, False),
        ("0" * 64, "1" * 64, False),
        ("1", "1", True),
        ("1", "2", False),
    ],
)
def test_two_fingerprints(one: str, other: str, same: bool) -> None:
    assert same_vectors(one, other) is same
