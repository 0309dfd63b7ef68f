"""`mclip-features --space pooled`: states before the projection, with the projection beside them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from mclip_fairseq.cli.features import main as features
from mclip_fairseq.models.teacher import DualEncoderTeacher
from mclip_fairseq.storage.features import FeatureStore


@pytest.fixture(scope="module")
def fixture(shared_dir: Path) -> Path:
    """Numbers of the released code."""
    return shared_dir / "fixtures" / "altclip"


def command(fixture: Path, folder: Path, *more: str) -> list[str]:
    """`mclip-features` on the English texts of the fixture."""
    texts = np.load(fixture / "altclip_outputs.npz")["teacher_texts"]
    captions = folder / "en.txt"
    captions.write_text("".join(f"{text}\n" for text in texts), encoding="utf-8")
    return [
        *("--model", str(fixture / "clip_teacher_tiny"), "--captions", str(captions), "--device", "cpu"),
        *("--store-dtype", "float32", *more),
    ]


def test_pooled_texts_and_their_projection_give_the_joint_features(fixture: Path, tmp_path: Path) -> None:
    """Both as in the released code, shard by shard on two machines."""
    output = ["--space", "pooled", "--shard-rows", "4", "--machines", "2", "--output", str(tmp_path / "text")]
    for machine in ("1", "0"):
        assert features(command(fixture, tmp_path, *output, "--machine", machine)) == 0
    store = FeatureStore.open(tmp_path / "text")
    expected = np.load(fixture / "altclip_outputs.npz")
    assert store.space == "pooled"
    assert np.abs(store.take(np.arange(6)) - expected["teacher_pooled"]).max() < 2e-5
    assert store.projection is not None
    joint = store.take(np.arange(6)) @ store.projection.weight.T
    assert np.abs(joint - expected["teacher_text_features"]).max() < 2e-5
    clip = DualEncoderTeacher.from_pretrained(fixture / "clip_teacher_tiny")
    assert store.projection.log_scale == float(clip.model.logit_scale)


def test_pooled_images_and_their_projection_give_the_joint_features(photos: Path, tmp_path: Path) -> None:
    common = ["--model", str(photos / "teacher"), "--images", str(photos / "images"), "--device", "cpu"]
    common += ["--store-dtype", "float32", "--workers", "0"]
    for space in ("joint", "pooled"):
        assert features([*common, "--space", space, "--output", str(tmp_path / space)]) == 0
    joint, pooled = FeatureStore.open(tmp_path / "joint"), FeatureStore.open(tmp_path / "pooled")
    assert joint.ids == pooled.ids
    assert (joint.space, joint.projection) == ("joint", None)
    assert pooled.projection is not None
    rows = torch.from_numpy(pooled.take(np.arange(len(pooled))) @ pooled.projection.weight.T)
    expected = torch.from_numpy(joint.take(np.arange(len(joint))))
    torch.testing.assert_close(F.normalize(rows, dim=1), F.normalize(expected, dim=1), rtol=0, atol=2e-5)


def test_an_altered_projection_is_refused(fixture: Path, tmp_path: Path) -> None:
    assert features(command(fixture, tmp_path, "--space", "pooled", "--output", str(tmp_path / "text"))) == 0
    file = tmp_path / "text" / "projection.npy"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"projection\.npy: is altered or truncated"):
        FeatureStore.open(tmp_path / "text")
    file.unlink()
    with pytest.raises(ValueError, match=r"projection\.npy: is missing"):
        FeatureStore.open(tmp_path / "text")


@pytest.mark.parametrize("space", ["elsewhere", "joint"])
def test_a_manifest_whose_space_and_projection_disagree_is_refused(space: str, fixture: Path, tmp_path: Path) -> None:
    assert features(command(fixture, tmp_path, "--space", "pooled", "--output", str(tmp_path / "text"))) == 0
    file = tmp_path / "text" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"space": space}))
    with pytest.raises(ValueError, match=f"is damaged .space '{space}'"):
        FeatureStore.open(tmp_path / "text")


def test_a_directory_is_not_continued_in_another_space(
    fixture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In either direction; a directory from before there were spaces continues as a joint one."""
    for first, second in (("joint", "pooled"), ("pooled", "joint")):
        output = ["--output", str(tmp_path / first)]
        assert features(command(fixture, tmp_path, *output, "--space", first)) == 0
        assert features(command(fixture, tmp_path, *output, "--space", second)) == 2
        assert "space" in capsys.readouterr().err
    file = tmp_path / "joint" / "manifest.json"
    old = {name: value for name, value in json.loads(file.read_text()).items() if name not in ("space", "projection")}
    file.write_text(json.dumps(old))
    assert features(command(fixture, tmp_path, "--output", str(tmp_path / "joint"))) == 0
    assert FeatureStore.open(tmp_path / "joint").space == "joint"


def test_a_teacher_without_a_plain_projection_is_refused(fixture: Path) -> None:
    """Some teachers project otherwise, or not at all."""
    teacher = DualEncoderTeacher.from_pretrained(fixture / "clip_teacher_tiny")
    teacher.model.text_projection = torch.nn.Linear(64, 40)  # with a bias
    with pytest.raises(ValueError, match="has no plain text projection"):
        teacher.projection("text")
    assert teacher.projection("image").weight.shape == (40, 56)
